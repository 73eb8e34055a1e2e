"""Draw docs/images/scaling.png: what communication leaves of many GPUs, on paper, from benchmarks/results.

python docs/draw_scaling.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks/results"
LOOKS = {
    "7B LoRA, ZeRO-2": ("#2e86ab", "o", 9),
    "72B QLoRA, DDP": ("#57a773", "s", 5),
    "7B full, ZeRO-3": ("#edae49", "^", 11),
    "72B full, ZeRO-3": ("#d1495b", "v", 5),
}


def main() -> None:
    result = json.loads((RESULTS / "projection.json").read_text(encoding="utf-8"))
    scenarios = {one["name"]: one["steps"] for one in result["scenarios"]}
    clusters = [cluster["name"] for cluster in result["clusters"]]
    figure, axes = plt.subplots(1, len(clusters), figsize=(12, 4.4), layout="constrained", sharey=True)
    for axis, cluster in zip(axes, clusters, strict=True):
        for name, (colour, marker, size) in LOOKS.items():
            steps = [step for step in scenarios[name] if step["cluster"] == cluster]
            gpus = [step["gpus"] for step in steps]
            low, high = ([100 * step[key] for step in steps] for key in ("one_after_the_other", "overlapped"))
            axis.plot(gpus, low, color=colour, marker=marker, markersize=size, label=name)
            axis.plot(gpus, high, color=colour, linestyle=":")
            axis.fill_between(gpus, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus, gpus)
        axis.set_xlabel("GPUs, 8 to a node")
        axis.set_title(cluster)
        axis.set_ylim(0, 104)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("part of the step that computes, %")
    axes[0].legend(frameon=False, loc="lower left", title="solid: nothing overlaps; dotted: all does")
    figure.suptitle("Projected on paper, not measured", fontsize=10)
    figure.savefig(DOCS / "images/scaling.png", dpi=80)


if __name__ == "__main__":
    main()
