"""What a sweep found, from its SQLite file alone: a table, a picture in parallel coordinates, the best options."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sarlang_sft.sweep_files import Sweep
from sarlang_sft.sweep_picture import draw
from sarlang_sft.trials import FAILED, Beginning, Trial, Trials
from sarlang_sft.whole_output import whole_file

TABLE, PICTURE, BEST = "sweep.md", "sweep.png", "best.yaml"


def stored_sweep(beginning: Beginning) -> Sweep:
    """The sweep file as it was when the sweep was started last."""
    return Sweep(Path(beginning.path), beginning.text, yaml.safe_load(beginning.text), beginning.configs)


def rank(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """The best first, those without a score last."""

    def place(trial: Trial) -> tuple[bool, float]:
        score = trial.best(sweep.metric, sweep.maximise)
        return score is None, 0.0 if score is None else -score if sweep.maximise else score

    return sorted(trials, key=place)


def write_report(trials: Trials, out: Path) -> Trial | None:
    """Write `sweep.md`, `sweep.csv`, `sweep.png` and `best.yaml`; the last two only if any trial has a score.

    Returns:
        The best trial.
    """
    beginning = trials.beginning()
    sweep = stored_sweep(beginning)
    ranked = rank(sweep, trials.all())
    rows = [row_of(sweep, trial) for trial in ranked]
    texts = {TABLE: as_markdown(sweep, rows, ranked), "sweep.csv": as_csv(rows)}
    scored = [trial for trial in ranked if trial.history(sweep.metric)]
    if scored:
        texts[BEST] = best_options(sweep, scored[0], beginning.nproc, trials.store)
        with whole_file(out / PICTURE) as file:
            draw(sweep, ranked, file)
    for name, text in texts.items():
        with whole_file(out / name) as file:
            file.write(text.encode())
    return scored[0] if scored else None


def row_of(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """What the tables say of a trial; `at` is the step of its best evaluation, `steps` that of its last."""
    history = trial.history(sweep.metric)
    score = trial.best(sweep.metric, sweep.maximise)
    return {
        "trial": trial.id,
        sweep.metric: score,
        "at": next((step for step, value in history.items() if value == score), None),
        **{parameter.name: trial.params.get(parameter.name) for parameter in sweep.varied()},
        "state": trial.state,
        "steps": max(trial.evaluations, default=0),
        "minutes": round(trial.seconds / 60, 1),
        "exit_code": trial.exit_code,
    }


def as_markdown(sweep: Sweep, rows: list[dict[str, Any]], trials: Sequence[Trial]) -> str:
    """The table for people, and why trials failed."""
    names = [name for name in rows[0] if name != "exit_code"] if rows else []
    lines = [f"# Sweep {sweep.content.get('name', sweep.path.stem)}", "", f"{len(rows)} trials, the best first.", ""]
    if rows:
        lines += ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
        lines += ["| " + " | ".join(say(row[name]) for name in names) + " |" for row in rows]
    failed = [trial for trial in trials if trial.state == FAILED]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {one.id} (exit code {one.exit_code}): `{one.reason}`" for one in failed]
    return "\n".join(lines) + "\n"


def say(value: Any) -> str:
    """A value as people read it."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The table for programs."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def best_options(sweep: Sweep, best: Trial, ranks: int, store: Path) -> str:
    """A config of the recipe with the options of the best trial; only its output_dir is left to choose.

    Args:
        ranks: Of every trial: with others, batches would be larger or smaller.
    """
    params = dict(best.params)
    options = {**sweep.configs.get(str(params.pop("config", None)), {}), **params}
    options.pop("output_dir", None)
    history = best.history(sweep.metric)
    score = best.best(sweep.metric, sweep.maximise)
    step = next(step for step, value in history.items() if value == score)
    header = [
        f"# The best trial of the sweep {sweep.path}: {sweep.metric} {score:.4g} at step {step}.",
        "#",
        f"#   torchrun --nproc_per_node {ranks} {sweep.program} --config {store.parent / BEST} --output_dir NAME",
        "#",
        f"# Trial {best.id} in {store}.",
    ]
    return "\n".join(header) + "\n" + yaml.safe_dump(options, sort_keys=False)
