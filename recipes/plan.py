r"""What a training will take, before any weight is loaded: parameters, memory of every GPU, hours and cost.

    python recipes/plan.py --config recipes/configs/qwen2_5_vl_7b_lora.yaml --gpus 8 --gpu_memory 80
    python recipes/plan.py --config recipes/configs/qwen2_5_vl_7b_full.yaml --gpus 8 --gpu_memory 80 \
        --deepspeed deepspeed_configs/zero3.json --price 2.5 --out plan.json

Takes the options of the training recipes. The sizes of the models that recipes/configs names are built in; of others
it reads the configuration and the processor. Without the data folder it counts with SARLANG-1M's published numbers. If
the training does not fit, it plans what would make it fit. How each figure is found: docs/planner.md.
"""

from pathlib import Path

from sarlang_sft.arguments import DataArguments, ModelArguments
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.planning.changes import try_changes
from sarlang_sft.planning.plan import PlanArguments, PlannedTrainArguments, make_plan
from sarlang_sft.planning.published import find_architecture
from sarlang_sft.planning.report import describe, write_plan
from sarlang_sft.planning.rows import find_dialogues, row_statistics
from sarlang_sft.tuning import TuningArguments

DEFAULT = Path(__file__).parent / "configs" / "qwen2_5_vl_7b_lora.yaml"


def main() -> None:
    arguments = [ModelArguments, TuningArguments, DataArguments, PlannedTrainArguments, PlanArguments]
    model, tuning, data, training, machine = parse_arguments(arguments, __doc__, DEFAULT)

    dialogues = find_dialogues(data)
    architecture = find_architecture(model, dialogues.texts, data.max_pixels)
    rows = row_statistics(dialogues, data, architecture)
    plan = make_plan(architecture, rows, model, tuning, data, training, machine)
    changes = try_changes(plan.setup, plan.memory, plan.limit, architecture)

    print(describe(plan, changes))
    if machine.out:
        write_plan(plan, changes, Path(machine.out))
        print(f"The plan: {machine.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
