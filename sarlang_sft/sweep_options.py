"""A sweep beside the options of the recipes: what it varies must be one of them, and its objective must be logged."""

from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from sarlang_sft.arguments import ANSWERED, DataArguments, ModelArguments, TrainArguments
from sarlang_sft.configuration import check_config_file, kinds, type_name
from sarlang_sft.errors import InputError
from sarlang_sft.sweep_files import FIXED, Sweep, choose
from sarlang_sft.sweep_search import plain
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.wandb_search import HyperParameter

ARGUMENTS = [ModelArguments, TuningArguments, DataArguments, TrainArguments]
OWN = ("output_dir", "resume", "resume_from_checkpoint", "run_name")  # which the sweep chooses
DECIDE = ("config", "eval_strategy", "eval_steps", "val_questions", "max_steps")  # whether the objective is logged
TRUTHS = ("true", "false", "yes", "no", "1", "0")


def check_options(sweep: Sweep) -> None:
    """Check the parameters and the objective of a sweep against the options of the recipes.

    Raises:
        InputError: A parameter is no option, a value is not of its type, or no evaluation gives the metric.
    """
    for config in sweep.configs:
        check_config_file(Path(config), ARGUMENTS)
    hints = {name: hint for cls in ARGUMENTS for name, hint in get_type_hints(cls).items()} | {"config": str}
    parameters = sweep.parameters()
    for parameter in parameters:
        if parameter.name not in hints:
            raise InputError(
                f"{sweep.path}: parameters: `{parameter.name}` is no option of {sweep.program}; "
                f"{choose(parameter.name, list(hints))}"
            )
        if parameter.name in OWN:
            raise InputError(f"{sweep.path}: parameters: {parameter.name}: the sweep chooses it; leave it out")
        for value in examples(parameter):
            if not takes(hints[parameter.name], value):
                raise InputError(
                    f"{sweep.path}: parameters: {parameter.name}: {value!r} is not of the type "
                    f"{type_name(hints[parameter.name])} that can be given on a command line"
                )
    if not {"config", "model_name_or_path"} & sweep.content["parameters"].keys():
        raise InputError(f"{sweep.path}: parameters: name a `config`, or a model_name_or_path and all that it needs")
    defaults = {field.name: field.default for cls in ARGUMENTS for field in fields(cls)}
    decisive = [parameter for parameter in parameters if parameter.name in DECIDE]
    for values in product(*map(examples, decisive)):
        given = dict(zip([parameter.name for parameter in decisive], values, strict=True))
        problem = why_never_logged(sweep.metric, {**defaults, **sweep.configs.get(given.get("config"), {}), **given})
        if problem:
            raise InputError(f"{sweep.path}: metric {sweep.content['metric']['name']}: {problem}")


def examples(parameter: HyperParameter) -> list[Any]:
    """Values that a parameter can have: all that are listed, else one of its distribution."""
    if parameter.type == FIXED:
        return [parameter.config["value"]]
    return parameter.config.get("values") or [plain(parameter, parameter.ppf(0.5))]


def takes(hint: Any, value: Any) -> bool:
    """Whether an option of this type can be given this value on the command line."""
    wanted = kinds(hint)
    if value is None or isinstance(value, list | dict):
        return False
    if isinstance(value, bool):
        return bool in wanted  # `save_strategy: no`, too, is false to YAML
    if str in wanted:
        return True
    if float in wanted:
        return not isinstance(value, str) or _is_number(value, float)
    if int in wanted:
        return type(value) is int or (isinstance(value, str) and _is_number(value, int))
    return bool in wanted and str(value).lower() in TRUTHS


def _is_number(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def why_never_logged(metric: str, options: dict[str, Any]) -> str | None:
    """Why a training with these options never gives this metric of val; None if it does.

    Whether the questions of val are of a task is known when they are read: a trial without its metric has failed.
    """
    known = ["loss", *ANSWERED]
    name = metric.removeprefix("eval_")
    if metric.startswith("test"):
        return "models are chosen on val, never on test"
    if not metric.startswith("eval_") or name not in known:
        return f"is never logged; {choose(metric, [f'eval/{one}' for one in known])}"
    if str(options["eval_strategy"]) in ("no", "IntervalStrategy.NO", "False"):
        return "nothing is evaluated; set `eval_strategy: {value: steps}`"
    if name in ANSWERED and not float(options["val_questions"] or 0):
        return "needs answers; set `val_questions: {value: 200}`, for example"
    steps, every = float(options["max_steps"]), float(options["eval_steps"] or 0)
    if options["eval_strategy"] == "steps" and 0 < steps < every:
        return f"the first evaluation is after {every:g} steps, and training ends after {steps:g}; lower eval_steps"
    return None
