"""What communication makes of 8, 64 and 512 GPUs: on paper, from formulas and published figures; nothing is measured.

    python benchmarks/projection.py --out benchmarks/results/projection.json

Parameters and operations are counted on the real models without storage, the exchanges of a step are those of
`sarlang_sft/communication.py`, which benchmarks/scaling.py compares with counts on two ranks. What the figures rest
on, and what they leave out, stands in docs/scale.md.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.adapters import lora_config
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.communication import Cluster, Sizes, count_sizes, exchanges, project
from sarlang_sft.flops import PEAK_FLOPS, Work, count_flops
from sarlang_sft.planning.published import published_config
from sarlang_sft.trainable import choose_trainable, freeze_all_but
from sarlang_sft.tuning import TuningArguments

GPUS = (8, 16, 32, 64, 128, 256, 512)
SHOWN = (8, 64, 512)  # in the table; docs/draw_scaling.py draws them all
# A pass is one row of 4,096 tokens: seven images of 256 tokens, nine questions each, six scored tokens an answer.
ROW = Work(tokens=4096, image_tokens=7 * 256, scored=7 * 9 * 6)
NVLINK = 450e9  # 900 GB/s both ways, published for an H100 with NVLink 4
CLUSTERS = (
    Cluster("InfiniBand, 400 Gbit/s a GPU", 8, NVLINK, 8 * 400e9 / 8),
    Cluster("Ethernet, 100 Gbit/s a node", 8, NVLINK, 100e9 / 8),
)


@dataclass(frozen=True)
class Scenario:
    """A training; widths are bytes per number of gathered weights and of reduced gradients."""

    name: str
    model: str
    tuning: str
    lora_r: int
    sharding: str
    weight_width: int
    gradient_width: int


SEVEN, SEVENTY_TWO = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"
# DeepSpeed exchanges bfloat16; DDP reduces gradients of adapters, which are kept in float32.
SCENARIOS = (
    Scenario("7B LoRA, ZeRO-2", SEVEN, "lora", 8, "zero2", 2, 2),
    Scenario("7B full, ZeRO-3", SEVEN, "full", 8, "zero3", 2, 2),
    Scenario("72B QLoRA, DDP", SEVENTY_TWO, "qlora", 16, "ddp", 4, 4),
    Scenario("72B full, ZeRO-3", SEVENTY_TWO, "full", 8, "zero3", 2, 2),
)


def count(scenario: Scenario) -> tuple[Sizes, float]:
    """Parameters of the model as it trains, checkpointed, and the operations of a pass."""
    backbone = BACKBONES["qwen2_5_vl"]
    with torch.device("meta"):
        model = backbone.model_class(published_config(scenario.model))
    tuning = TuningArguments(tuning=scenario.tuning, lora_r=scenario.lora_r, lora_alpha=2 * scenario.lora_r)
    trainable = choose_trainable(model, backbone, tuning)
    adapters = lora_config(model, backbone, trainable, tuning)
    if adapters is None:
        freeze_all_but(model, trainable)
    else:
        model = get_peft_model(model, adapters)
    return count_sizes(model, backbone, checkpointed=True), count_flops(model, backbone)(ROW)


def project_scenario(scenario: Scenario, passes: int, speed: float) -> dict[str, Any]:
    """Its inputs, and its step on every cluster and number of GPUs."""
    sizes, flop = count(scenario)
    step = exchanges(scenario.sharding, sizes, passes, scenario.weight_width, scenario.gradient_width)
    steps = []
    for cluster in CLUSTERS:
        for gpus in GPUS:
            projected = project(step, passes * flop, speed, cluster, gpus)
            steps.append(
                {"cluster": cluster.name, "gpus": gpus, "sent_bytes": sum(one.sent(gpus) for one in step)}
                | projected._asdict()
                | {"one_after_the_other": projected.one_after_the_other, "overlapped": projected.overlapped}
            )
    return {**asdict(scenario), "sizes": asdict(sizes), "flop_per_pass": flop, "steps": steps}


def table(scenarios: list[dict[str, Any]]) -> str:
    """Seconds of computing and sending, and the part of the step that computes."""
    lines = [f"{'training':18} {'network':30} {'GPUs':>4} {'GB sent':>8} {'computes':>9} {'sends':>9}  efficiency"]
    for one in scenarios:
        lines += [
            f"{one['name']:18} {step['cluster']:30} {step['gpus']:4} {step['sent_bytes'] / 1e9:8.2f} "
            f"{step['compute']:7.2f} s {step['communication']:7.3f} s  "
            f"{step['one_after_the_other']:.1%} to {step['overlapped']:.1%}"
            for step in one["steps"]
            if step["gpus"] in SHOWN
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mfu", type=float, default=0.35, help="that a GPU reaches alone (default: %(default)s)")
    parser.add_argument("--gpu", choices=PEAK_FLOPS, default="H100", help="whose peak that is of")
    parser.add_argument("--passes", type=int, default=1, help="rows of a GPU in a step, one after the other")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    speed = options.mfu * PEAK_FLOPS[options.gpu]
    scenarios = [project_scenario(scenario, options.passes, speed) for scenario in SCENARIOS]
    print(table(scenarios))
    inputs = {"mfu": options.mfu, "peak_flops": PEAK_FLOPS[options.gpu], "passes": options.passes, "row": asdict(ROW)}
    inputs |= {"clusters": [asdict(cluster) for cluster in CLUSTERS]}
    setting.write_result(
        options.out, {"measured": False, "versions": setting.versions(), **inputs, "scenarios": scenarios}
    )


if __name__ == "__main__":
    main()
