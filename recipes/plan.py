r"""What a training will take, before any weight is loaded: parameters, memory of every GPU, hours and cost.

    python recipes/plan.py --config recipes/configs/qwen2_5_vl_7b_lora.yaml --gpus 8 --gpu_memory 80
    python recipes/plan.py --config recipes/configs/qwen2_5_vl_7b_full.yaml --gpus 8 --gpu_memory 80 \
        --deepspeed deepspeed_configs/zero3.json --price 2.5 --out plan.json

Takes the options of the training recipes, and reads the model's configuration and processor only. Without the data
folder it counts with SARLANG-1M's published numbers. If the training does not fit, it plans what would make it fit.
How each figure is found: docs/planner.md.
"""

from pathlib import Path

from sarlang_sft.arguments import DataArguments, ModelArguments
from sarlang_sft.backbones import find_backbone
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.loading import load_processor
from sarlang_sft.planning import PlanArguments, PlannedTrainArguments, make_plan
from sarlang_sft.planning_report import describe, write_plan
from sarlang_sft.tuning import TuningArguments

DEFAULT = Path(__file__).parent / "configs" / "qwen2_5_vl_7b_lora.yaml"


def main() -> None:
    arguments = [ModelArguments, TuningArguments, DataArguments, PlannedTrainArguments, PlanArguments]
    model_args, tuning, data, training, machine = parse_arguments(arguments, __doc__, DEFAULT)

    backbone = find_backbone(model_args.model_name_or_path)
    processor = load_processor(model_args.model_name_or_path, backbone, data.max_pixels)
    plan = make_plan(model_args, tuning, data, training, machine, processor, backbone)
    print(describe(plan))
    if machine.out:
        write_plan(plan, Path(machine.out))
        print(f"The plan: {machine.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
