"""Learning curves of a training's output folder."""

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from sarlang_sft.errors import InputError
from sarlang_sft.reporting.charts import Chart, Point, Series, reach, thin
from sarlang_sft.run_files import read_evaluations
from sarlang_sft.scoring.prediction_lines import is_finite
from sarlang_sft.scoring.predictions import read_json

STATE, RESULTS = "trainer_state.json", "train_results.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class History(NamedTuple):
    """What a training logged: metric -> (step, value), steps rising; `seconds` it took, None if no file says."""

    name: str
    folder: Path
    metrics: dict[str, list[Point]]
    seconds: float | None


def read_history(name: str, folder: Path) -> History:
    """The history of an output folder, or of its newest checkpoint while the training has not ended.

    Raises:
        InputError: The folder holds neither a trainer's state nor evaluations.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    newest = sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    state = next((one / STATE for one in [folder, *newest] if (one / STATE).is_file()), None)
    logged = read_json(state).get("log_history", []) if state else []
    by_step: dict[str, dict[float, float]] = {}
    for entry in [*logged, *({"step": step, **metrics} for step, metrics in read_evaluations(folder).items())]:
        for metric, value in entry.items():
            if metric != "step" and is_finite(value) and is_finite(entry.get("step")):
                by_step.setdefault(metric, {})[float(entry["step"])] = float(value)
    if not by_step:
        raise InputError(
            f"--histories {name}={folder}: no {STATE} or evaluations.jsonl with figures; give a run's folder"
        )
    metrics = {metric: sorted(values.items()) for metric, values in by_step.items()}
    results = folder / RESULTS
    seconds = read_json(results).get("train_runtime") if results.is_file() else None
    return History(name, folder, metrics, float(seconds) if is_finite(seconds) else None)


def learning_curves(histories: Sequence[History], styles: dict[str, int]) -> list[Chart]:
    """Loss in training and on val, and accuracy and CIDEr on val, of all histories together.

    Args:
        styles: Of runs by their names: a history of the same name looks like its run, others look like none.
    """
    fresh = count(max(styles.values(), default=-1) + 1)
    looks = [styles[history.name] if history.name in styles else next(fresh) for history in histories]
    wanted = [
        ("Loss", "loss", ("loss", "eval_loss"), False),
        ("Accuracy on the val sample", "accuracy", ("eval_accuracy",), True),
        ("CIDEr on the val sample", "CIDEr", ("eval_cider",), False),
    ]
    charts = []
    for title, unit, metrics, percent in wanted:
        series = [
            Series(
                f"{history.name}{', val' if metric.startswith('eval_') else ', training'}",
                look,
                thin(history.metrics[metric]),
                dashed=metric == "eval_loss",
            )
            for look, history in zip(looks, histories, strict=True)
            for metric in metrics
            if metric in history.metrics
        ]
        if series:
            values = [y for one in series for _, y in one.points]
            last = max(x for one in series for x, _ in one.points)
            ends = "; ".join(f"{one.name}: from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in series)
            span = (0.0, 1.0) if percent else reach(values)
            charts.append(Chart(title, f"{title} by step. {ends}.", "step", unit, (0.0, last), span, series, percent))
    return charts
