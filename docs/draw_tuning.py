"""Draw docs/tuning.png: what every family and every way to tune learned, from benchmarks/results.

python docs/draw_tuning.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks/results"
COLOURS = {"majority": "#c9ced6", "blind": "#8d99ae", "before": "#edae49", "after": "#2e86ab"}


def main() -> None:
    families = json.loads((RESULTS / "cpu_families.json").read_text(encoding="utf-8"))["families"]
    ways = json.loads((RESULTS / "cpu_accuracy.json").read_text(encoding="utf-8"))["runs"]
    speeds = {run["way"]: run for run in json.loads((RESULTS / "cpu_ways.json").read_text(encoding="utf-8"))["runs"]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")

    for place, (kind, colour) in enumerate(COLOURS.items()):
        columns = [index + (place - 1.5) / 5 for index in range(len(families))]
        bars = left.bar(columns, [100 * one[kind] for one in families.values()], 0.19, color=colour, label=kind)
        if kind == "after":
            left.bar_label(bars, fmt="%.0f", fontsize=8)
    left.set_xticks(range(len(families)), families, rotation=20, ha="right")
    left.set_ylabel("VQA accuracy, %")
    left.set_title("Tiny model of every family, default LoRA")
    left.legend(frameon=False, ncols=4, loc="upper center")
    left.set_ylim(0, 80)

    ways = sorted(ways, key=lambda run: run["accuracy"])
    bars = right.barh([run["way"] for run in ways], [100 * run["accuracy"] for run in ways], color=COLOURS["after"])
    plain = speeds["lora"]
    costs = [
        f"{100 * run['accuracy']:.1f} %   {speeds[run['way']]['qa_per_s'] / plain['qa_per_s']:.2f} x speed, "
        f"{speeds[run['way']]['memory_bytes'] / plain['memory_bytes']:.2f} x memory"
        for run in ways
    ]
    right.bar_label(bars, costs, padding=4, fontsize=8)
    right.set_xlim(0, 140)
    right.set_xticks(range(0, 101, 20))
    right.set_xlabel("VQA accuracy, %")
    right.set_title("Tiny Qwen2.5-VL, every way; costs beside LoRA's")
    figure.savefig(DOCS / "tuning.png", dpi=80)


if __name__ == "__main__":
    main()
