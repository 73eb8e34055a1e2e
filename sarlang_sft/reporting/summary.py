"""summary.json: the figures of a report for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sarlang_sft.reporting.curves import History
from sarlang_sft.reporting.model_figures import ModelFigures
from sarlang_sft.reporting.page import Report
from sarlang_sft.reporting.tables import accuracy_by_task
from sarlang_sft.scoring.baselines import MAJORITY
from sarlang_sft.whole_output import whole_file


def summarise(report: Report, histories: Sequence[History], merged: dict[str, Any] | None) -> dict[str, Any]:
    """Accuracy (0..1) of the majority and of every run, and of the files given the first of each kind.

    Returns:
        `majority_accuracy` and `<run>_accuracy`, `merge_max_abs_diff`, `train_seconds`, and `scores` with
        `accuracy_by_task`, `vqa` and `caption`; None for what was not given, not answered, or is not known.
        `figures`, see [`summarise_figures`], only where there are any.
    """
    shares = {line.name: line.shares for line in report.lines}
    names = [MAJORITY, *(run.name for run in report.runs)]
    columns = {name: shares[name] for name in names if name in shares}
    by_task = accuracy_by_task(report.runs[0].questions, columns) if shares else None
    figures = summarise_figures(report.figures) if report.figures else {}
    return (
        {f"{name}_accuracy": by_task["all"].get(name) if by_task else None for name in names}
        | {
            "merge_max_abs_diff": merged.get("max_abs_diff") if merged else None,
            "train_seconds": histories[0].seconds if histories else None,
            "scores": {
                "accuracy_by_task": by_task,
                "vqa": next(iter(report.scores.values()), None),
                "caption": next(iter(report.captions.values()), None),
            },
        }
        | figures
    )


def summarise_figures(files: Sequence[ModelFigures]) -> dict[str, Any]:
    """`figures`: of every file the model's name, task, protocol, what was counted, and the figures."""
    parts = ("task", "protocol", "model", "n", "figures")
    return {"figures": [{"name": one.name, **{part: one.content[part] for part in parts}} for one in files]}


def write_summary(summary: dict[str, Any], out: Path) -> None:
    """Write summary.json into the folder `out`."""
    with whole_file(out / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")
