"""Sweep files as W&B has them: read, checked as far as that needs no recipe, and compared with those of before."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.wandb_search import HyperParameter, HyperParameterSet, find_violations
from sarlang_sft.yaml_files import read_mapping

# What of https://docs.wandb.ai/models/sweeps/sweep-config-keys is taken, beside which W&B has keys of its launch jobs.
KEYS = (
    "program", "method", "metric", "parameters", "early_terminate", "run_cap", "command", "name", "description",
    "project", "entity",
)  # fmt: skip
FREE = ("run_cap", "name", "description", "command")  # may change while a sweep is under way
METHODS = ("grid", "random", "bayes")
FIXED = HyperParameter.CONSTANT
LOG_SCALES = (
    HyperParameter.LOG_UNIFORM_V2, HyperParameter.INV_LOG_UNIFORM_V2, HyperParameter.Q_LOG_UNIFORM_V2,
    HyperParameter.LOG_NORMAL, HyperParameter.Q_LOG_NORMAL,
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        text: As it was written.
        content: As YAML has it.
        configs: The YAML files that its parameter `config` names, and what they hold.
    """

    path: Path
    text: str
    content: dict[str, Any]
    configs: dict[str, dict[str, Any]]

    @property
    def program(self) -> Path:
        """The recipe."""
        return Path(self.content["program"])

    @property
    def metric(self) -> str:
        """The objective as the trainer logs it, `eval_accuracy`; W&B shows it as `eval/accuracy`."""
        return self.content["metric"]["name"].replace("eval/", "eval_", 1)

    @property
    def maximise(self) -> bool:
        """Whether larger is better."""
        return self.content["metric"]["goal"] == "maximize"

    @property
    def run_cap(self) -> float:
        """Trials at most."""
        return self.content.get("run_cap", math.inf)

    def parameters(self) -> list[HyperParameter]:
        """The parameters as W&B's search knows them, by their names."""
        return list(HyperParameterSet.from_config(self.content["parameters"]))

    def varied(self) -> list[HyperParameter]:
        """Those that are searched."""
        return [parameter for parameter in self.parameters() if parameter.type != FIXED]

    def for_search(self) -> dict[str, Any]:
        """What the search reads, with the metric by the trainer's name."""
        read = ("method", "parameters", "early_terminate")
        metric = {**self.content["metric"], "name": self.metric}
        return {**{key: self.content[key] for key in read if key in self.content}, "metric": metric}


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        InputError: It is none, holds a key that is not known, searches nothing, never ends, or has no objective.
    """
    if not path.is_file():
        raise InputError(f"--sweep {path}: no such file")
    text = path.read_text(encoding="utf-8")
    content = read_mapping(path, text)
    try:
        _check(content)
        violations = find_violations({k: v for k, v in content.items() if k != "run_cap"})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (jsonschema.ValidationError, AssertionError, TypeError, ValueError) as error:
        violations = [str(error)]
    if violations:
        raise InputError(f"{path}: {violations[0]}; see https://docs.wandb.ai/models/sweeps/sweep-config-keys")
    named = content["parameters"].get("config", {})
    files = [str(name) for name in named.get("values", [named["value"]] if "value" in named else [])]
    for name in files:
        if not Path(name).is_file():
            raise InputError(f"{path}: config {name}: no such file")
    return Sweep(path, text, content, {name: read_mapping(Path(name), Path(name).read_text()) for name in files})


def choose(name: str, known: list[str]) -> str:
    """The end of a message about a name that is none of a few."""
    return nearest(name, known, f"choose from {', '.join(known)}")


def _check(content: dict[str, Any]) -> None:
    for key in content:
        if key not in KEYS:
            raise InputError(f"unknown key `{key}`; {choose(str(key), list(KEYS))}")
    for key in ("program", "method", "metric", "parameters"):
        if key not in content:
            raise InputError(f"`{key}` is missing")
    if not Path(str(content["program"])).is_file():
        raise InputError(f"program {content['program']}: no such file here; start from the top of the repository")
    if content["method"] not in METHODS:
        raise InputError(f"method `{content['method']}`: choose one of {', '.join(METHODS)}")
    metric = content["metric"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise InputError("metric: must hold `name: eval/accuracy` (or another) and `goal: maximize`")
    if metric.get("goal") not in ("maximize", "minimize"):
        raise InputError("metric: must say `goal: maximize` or `goal: minimize`; W&B minimises where nothing is said")
    if not isinstance(content["parameters"], dict) or not content["parameters"]:
        raise InputError("parameters: must hold the options to search, as in `learning_rate: {values: [1.0e-4]}`")
    for name, parameter in content["parameters"].items():
        _check_parameter(str(name), parameter)
    if all("value" in parameter for parameter in content["parameters"].values()):
        raise InputError("parameters: nothing is searched; give one of them `values`, or `min` and `max`")
    run_cap = content.get("run_cap", 1)
    if type(run_cap) is not int or run_cap < 1:
        raise InputError(f"run_cap {run_cap}: must be a number of trials")
    if content["method"] != "grid" and "run_cap" not in content:
        raise InputError(f"method {content['method']} has no end by itself: say how many trials, `run_cap: 20`")


def _check_parameter(name: str, parameter: Any) -> None:
    if not isinstance(parameter, dict):
        raise InputError(f"parameters: `{name}: {parameter}`: write `{name}: {{value: {parameter}}}`")
    if "parameters" in parameter:
        raise InputError(f"parameters: {name}: holds parameters of its own; the recipes' options are flat")
    if "values" in parameter and not parameter["values"]:
        raise InputError(f"parameters: {name}: `values` is empty")
    for key in ("min", "max", "mu", "sigma", "q"):
        if isinstance(parameter.get(key), str):
            raise InputError(
                f"parameters: {name}: {key} `{parameter[key]}` is text to YAML; write numbers as 1.0e-4, with a point"
            )


def find_changes(before: dict[str, Any], now: dict[str, Any], name: str = "") -> list[str]:
    """Where two mappings differ, in words: `parameters.learning_rate.max: 0.001 then, 0.01 now`."""
    changes = []
    for key in sorted({*before, *now}, key=str):
        where = f"{name}.{key}" if name else str(key)
        was, is_now = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(is_now, dict):
            changes += find_changes(was, is_now, where)
        elif was != is_now:
            changes.append(f"{where}: {_say(was)} then, {_say(is_now)} now")
    return changes


def _say(value: Any) -> str:
    return "nothing" if value is None else str(value)


def what_counts(sweep: Sweep) -> dict[str, Any]:
    """What must stay the same as long as a sweep is under way."""
    return {**{key: value for key, value in sweep.content.items() if key not in FREE}, "configs": sweep.configs}
