"""The planner's estimate in the header of a training configuration."""

import re
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from sarlang_sft.arguments import DataArguments, ModelArguments
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError
from sarlang_sft.planning.plan import PlanArguments, PlannedTrainArguments, make_plan
from sarlang_sft.planning.published import find_architecture
from sarlang_sft.planning.report import header
from sarlang_sft.planning.rows import find_dialogues, row_statistics
from sarlang_sft.tuning import TuningArguments

GPU_MEMORY = 80
BEGIN = "# Planner's estimate"


def planned_text(root: Path, config: Path) -> str:
    """The text of a configuration with the plan, as it is now, at the end of its header.

    Planned for the processes and the DeepSpeed configuration of the launch line in the header, and without looking for
    data or models on this machine.

    Args:
        root: Of the repository.
        config: Of the configuration, below the root.

    Raises:
        InputError: Its header has no launch line.
    """
    text = (root / config).read_text(encoding="utf-8")
    comments = re.match(r"(?:#.*\n)*", text)[0]
    launched = re.search(r"--nproc_per_node (\d+)", comments)
    if not launched:
        raise InputError(f"{config}: its header has no launch line with --nproc_per_node")
    sharded = re.search(r"--deepspeed (\S+)", comments)
    options = ["--gpus", launched[1], "--gpu_memory", str(GPU_MEMORY)]
    given = ["--config", str(root / config), *options]
    if sharded:
        given += ["--deepspeed", str(root / sharded[1])]
        options += ["--deepspeed", sharded[1]]
    arguments = [ModelArguments, TuningArguments, DataArguments, PlannedTrainArguments, PlanArguments]
    with TemporaryDirectory() as empty, chdir(empty):
        model, tuning, data, training, machine = parse_arguments(arguments, "", args=given)
        dialogues = find_dialogues(data)
        architecture = find_architecture(model, dialogues.texts, data.max_pixels)
        rows = row_statistics(dialogues, data, architecture)
        plan = make_plan(architecture, rows, model, tuning, data, training, machine)
    command = " ".join(["python recipes/plan.py --config", str(config), *options])
    return comments.partition(BEGIN)[0] + header(plan, command) + text.removeprefix(comments)
