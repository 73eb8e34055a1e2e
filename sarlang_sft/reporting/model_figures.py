"""What evaluations of contrastive models wrote, models side by side: tables of figures, and what is taken for what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sarlang_sft.errors import InputError
from sarlang_sft.reporting.figures import Table
from sarlang_sft.reporting.measures import Matrix
from sarlang_sft.scoring.predictions import read_json

PARTS = {"task": str, "protocol": str, "model": str, "n": int, "unreadable": dict, "figures": dict}
TASKS = {
    "retrieval": "Retrieval",
    "zero_shot": "Zero-shot recognition",
    "linear_probe": "Linear probe",
    "fine_tuned": "Fine-tuned recognition",
    "semantic_localization": "Semantic localisation",
}
FIGURES = {"top1": "top-1", "top3": "top-3", "top5": "top-5", "mean_per_class": "mean over classes"}
MOST_CLASSES = 40  # of a matrix on the page


class ModelFigures(NamedTuple):
    """One file of an evaluation, and the name that its model has on the page."""

    name: str
    path: Path
    content: dict[str, Any]

    @property
    def title(self) -> str:
        """The task and the protocol, as a heading."""
        task = self.content["task"]
        return f"{TASKS.get(task, task.replace('_', ' '))}: {self.content['protocol']}"


def read_figures(named: Sequence[tuple[str, Path]]) -> list[ModelFigures]:
    """Files of `contrastive.results.write_figures`.

    Args:
        named: A model's name may stand before several files.

    Raises:
        InputError: A file is missing or none of these, or a model has two of one task and protocol.
    """
    found: dict[tuple[str, str], ModelFigures] = {}
    for name, path in named:
        content = read_json(path)
        usable = all(isinstance(content.get(part), kind) for part, kind in PARTS.items())
        if not usable or not all(map(_is_figure, content["figures"].values())):
            raise InputError(
                f"--figures {name}={path}: holds no figures of a contrastive model; make it with eval/zero_shot.py, "
                "eval/linear_probe.py, eval/fine_tune.py or another of its evaluations"
            )
        one = ModelFigures(name, path, content)
        if (name, one.title) in found:
            earlier = found[name, one.title].path
            raise InputError(f"--figures {name}={path}: {earlier} has {one.title!r} of {name}, too; name them apart")
        found[name, one.title] = one
    return list(found.values())


def _is_figure(figure: Any) -> bool:
    if not isinstance(figure, dict):
        return False
    numbers = [figure.get("value"), *(figure[end] for end in ("low", "high") if end in figure)]
    return all(isinstance(number, int | float) for number in numbers) and ("low" in figure) == ("high" in figure)


def figure_tables(files: Sequence[ModelFigures]) -> list[Table]:
    """A table for every task and protocol: figures by models, with their 95% intervals."""
    tables = []
    for title in dict.fromkeys(one.title for one in files):
        members = [one for one in files if one.title == title]
        names = dict.fromkeys(figure for one in members for figure in one.content["figures"])
        rows = [
            (FIGURES.get(name, name), [_say(one.content["figures"].get(name)) for one in members]) for name in names
        ]
        rows.append(("counted", [f"{one.content['n']:,}" for one in members]))
        if any(one.content["unreadable"] for one in members):
            rows.append(("excluded as unreadable", [f"{len(one.content['unreadable']):,}" for one in members]))
        tables.append(Table(title, [one.name for one in members], rows))
    return tables


def _say(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    interval = f" ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})" if "low" in figure else ""
    return f"{100 * figure['value']:.1f} %{interval}"


def figure_matrices(files: Sequence[ModelFigures]) -> list[tuple[str, Matrix]]:
    """Of recognition with at most `MOST_CLASSES` classes, what is taken for what, each under its heading."""
    return [
        (f"{one.title}, {one.name}", Matrix(classes, classes, one.content["confusion"]))
        for one in files
        if 0 < len(classes := one.content.get("classes", [])) <= MOST_CLASSES
    ]
