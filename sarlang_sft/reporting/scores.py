"""Scores of runs beside baselines, and what is published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sarlang_sft.reporting.given import BLIND, PLAIN, TEXT_ONLY, Run, about
from sarlang_sft.sarlang import SARLANG_SOURCES
from sarlang_sft.scoring.baselines import MAJORITY, RANDOM, majority_verdicts, random_chances, read_training_answers
from sarlang_sft.scoring.comparison import compare_verdicts
from sarlang_sft.scoring.exact import question_type
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, break_down, group_by

MISSING = {
    BLIND: "not run: eval/generate.py --exchange_images",
    TEXT_ONLY: "not run: eval/generate.py --without_images",
    MAJORITY: "not known: the data folder has no training questions",
    RANDOM: "not known: the data folder has no training questions",
}
Score = dict[str, Any]  # `value`, and `low` and `high` of its 95% interval, None where it is exact


class Line(NamedTuple):
    """What one run or baseline reached.

    Attributes:
        style: Number of its colour; None: a baseline.
        shares: How right it is at every question, 0..1.
        overall: Over all questions.
        groups: `by_task` ... -> name -> `n` and the score.
        answered: Questions with an answer.
    """

    name: str
    about: str
    style: int | None
    shares: list[float]
    overall: Score
    groups: dict[str, dict[str, Score]]
    answered: int


def score_lines(runs: Sequence[Run], data: Path) -> list[Line]:
    """Runs, then baselines: those that were run, the majority of the training answers, and chance.

    A run that answered captions alone has no line; without training questions there is neither majority nor chance.
    """
    rows = runs[0].questions
    styles = styles_of(runs)
    lines = [
        _line(run.name, about(run), styles[run.name], run.right, rows, run.answered) for run in runs if run.answered
    ]
    if lines and (known := read_training_answers(data)).by_form:
        majority = majority_verdicts(known, rows)
        lines.append(_line(MAJORITY, "most frequent training answer of the question's form", None, majority, rows))
        chances = random_chances(known, rows)
        lines.append(_line(RANDOM, "drawn among the form's training answers; exact expectation", None, chances, rows))
    return sorted(lines, key=lambda line: line.style is None)


def styles_of(runs: Sequence[Run]) -> dict[str, int | None]:
    """A number for every run that sees its images, None for baselines."""
    plain = [run.name for run in runs if run.kind == PLAIN]
    return {run.name: plain.index(run.name) if run.kind == PLAIN else None for run in runs}


def _line(
    name: str,
    about_it: str,
    style: int | None,
    shares: Sequence[float],
    rows: Sequence[Row],
    answered: int | None = None,
) -> Line:
    def score(group: Sequence[int]) -> Score:
        members = [shares[place] for place in group]
        if all(isinstance(share, bool) for share in members):
            return share_with_interval(members)
        return {"value": float(np.mean(members)), "low": None, "high": None}

    overall = score(range(len(rows)))
    groups = break_down(rows, score) | {"by_type": group_by(rows, lambda row: question_type(row.label), score)}
    return Line(
        name,
        about_it,
        style,
        list(shares),
        overall,
        groups,
        len(rows) if answered is None else answered,
    )


class Comparison(NamedTuple):
    """How the run `second` differs from `first`: what [`compare_verdicts`] finds, over all and by task."""

    first: str
    second: str
    figures: dict[str, Any]

    @property
    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Over all, then every task; a task may be called `all`, too."""
        return [("all", self.figures), *self.figures["by_task"].items()]


def compare_runs(runs: Sequence[Run]) -> list[Comparison]:
    """Every run that sees its images and answered questions against the first of them."""
    plain = [run for run in runs if run.kind == PLAIN and run.answered]
    return [
        Comparison(plain[0].name, run.name, compare_verdicts(run.questions, run.right, plain[0].right))
        for run in plain[1:]
    ]


def missing_baselines(runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, str]:
    """The baselines that are not among the lines, and why or how they are made."""
    counted = {line.name for line in lines} & {MAJORITY, RANDOM}
    there = counted | {run.kind for run in runs if run.answered}
    return {name: why for name, why in MISSING.items() if name not in there}


def read_published() -> dict[str, Any]:
    """The published figures, which are no measurements of this project."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def is_sarlang(rows: Sequence[Row]) -> bool:
    """Whether all rows are of SARLANG-1M's image sources."""
    return {row.source for row in rows} <= SARLANG_SOURCES
