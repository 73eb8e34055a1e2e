"""Scores of answers to questions under three protocols, over a split and its parts."""

from collections.abc import Sequence
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, break_down
from sarlang_sft.scoring.published import Judge, JudgeQuestion, published_question, published_verdict

PROTOCOLS = ("exact", "published", "judge")


def score_vqa(rows: Sequence[Row], protocol: str, judge: Judge | None = None) -> dict[str, Any]:
    """Shares of right answers with 95% intervals, over all and by task, subset, source and resolution.

    A missing prediction counts as wrong, and so does what a judge left open: `undecided` says how many there are, and
    `upper_bound` the share if all of them were right.

    Args:
        rows: Questions with their predictions; at least one.
        protocol: One of `PROTOCOLS`.
        judge: Decides what `published` and `judge` leave to one; without it `published` leaves that undecided.

    Raises:
        InputError: There is no row, the protocol is unknown, or `judge` has no judge.
    """
    if not rows:
        raise InputError("no questions to score: the split or the predictions are empty")
    given = verdicts(rows, protocol, judge)
    correct = [verdict is True for verdict in given]
    result: dict[str, Any] = {
        "protocol": protocol,
        "n": len(rows),
        "answered": sum(row.predict is not None for row in rows),
        "overall": share_with_interval(correct),
    }
    if protocol != "exact":
        undecided = given.count(None)
        result["undecided"] = undecided
        result["upper_bound"] = (sum(correct) + undecided) / len(rows)
    return result | break_down(rows, lambda group: share_with_interval([correct[index] for index in group]))


def verdicts(rows: Sequence[Row], protocol: str, judge: Judge | None = None) -> list[bool | None]:
    """Whether each prediction is right; a missing one is wrong, None is what no judge has decided.

    `exact` decides alone. `published` asks the judge about what its rule leaves open, in lower case. `judge` asks
    about every answer with a word that `exact` does not find right.

    Raises:
        InputError: The protocol is unknown, or `judge` has no judge.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: must be one of {', '.join(PROTOCOLS)}")
    if protocol == "judge" and judge is None:
        raise InputError("--protocol judge: needs a judge; exact and published do without")
    found: list[bool | None] = []
    asked: dict[int, JudgeQuestion] = {}
    for index, row in enumerate(rows):
        if row.predict is None:
            found.append(False)
        elif protocol == "published":
            found.append(published_verdict(row.label, row.predict))
            if found[index] is None:
                asked[index] = published_question(row.question, row.label, row.predict)
        else:
            found.append(exact_verdict(row.label, row.predict, row.question))
            if protocol == "judge" and not found[index] and row.predict.strip():
                found[index] = None
                asked[index] = JudgeQuestion(row.question, row.label, row.predict)
    if judge is not None and asked:
        for index, verdict in zip(asked, judge(list(asked.values())), strict=True):
            found[index] = verdict
    return found
