"""Scores of answers to questions under three protocols, over a split and its parts."""

from collections.abc import Sequence
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.exact import VERSION, exact_verdict, question_type
from sarlang_sft.scoring.found_boxes import RIGHT, match_boxes, score_boxes
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, break_down, group_by
from sarlang_sft.scoring.published import Judge, JudgeQuestion, published_question, published_verdict
from sarlang_sft.scoring.type_figures import score_counts, score_lists, score_positions
from sarlang_sft.scoring.vocabulary import VOCABULARY, Vocabulary

# Version of the rules: whoever changes a verdict raises it.
PROTOCOLS = {"exact": VERSION, "published": 1, "judge": VERSION}

# Figures beside the score, and the types of questions that they are about.
BESIDE = {
    "counting": (score_counts, {"count"}),
    "positions": (score_positions, {"position"}),
    "lists": (score_lists, {"class", "list"}),
}


def score_vqa(
    rows: Sequence[Row], protocol: str, judge: Judge | None = None, vocabulary: Vocabulary = VOCABULARY
) -> dict[str, Any]:
    """Shares of right answers with 95% intervals, over all and by type, task, subset, source and resolution.

    A missing prediction counts as wrong; `of_answered` is the share of the others alone. What a judge left open counts
    as wrong too: `undecided` says how many there are, and `upper_bound` the share if all of them were right. Beside
    the score stand `counting`, `positions`, `lists` and `boxes`, where there are such questions.

    Args:
        rows: Questions with their predictions; at least one.
        protocol: One of `PROTOCOLS`.
        judge: Decides what `published` and `judge` leave to one; without it `published` leaves that undecided.

    Raises:
        InputError: There is no row, the protocol is unknown, or `judge` has no judge.
    """
    if not rows:
        raise InputError("no questions to score: the split or the predictions are empty")
    given = verdicts(rows, protocol, judge, vocabulary)
    correct = [verdict is True for verdict in given]

    def share(group: Sequence[int]) -> dict[str, Any]:
        answered = sum(rows[index].predict is not None for index in group)
        return {"answered": answered, **share_with_interval([correct[index] for index in group])}

    answered = [index for index, row in enumerate(rows) if row.predict is not None]
    result: dict[str, Any] = {
        "protocol": protocol,
        "n": len(rows),
        "answered": len(answered),
        "overall": share_with_interval(correct),
        "of_answered": share_with_interval([correct[index] for index in answered]) if answered else None,
    }
    if protocol != "exact":
        undecided = given.count(None)
        result["undecided"] = undecided
        result["upper_bound"] = (sum(correct) + undecided) / len(rows)
    types = [question_type(row.label, vocabulary) for row in rows]
    result["by_type"] = group_by(rows, lambda row: question_type(row.label, vocabulary), share)
    result |= break_down(rows, share)
    for name, (figures, wanted) in BESIDE.items():
        chosen = [row for row, kind in zip(rows, types, strict=True) if kind in wanted]
        if chosen:
            result[name] = figures(chosen, vocabulary)
    if boxed := [row for row, kind in zip(rows, types, strict=True) if kind == "box"]:
        result["boxes"] = score_boxes(boxed)
    return result


def verdicts(
    rows: Sequence[Row], protocol: str, judge: Judge | None = None, vocabulary: Vocabulary = VOCABULARY
) -> list[bool | None]:
    """Whether each prediction is right; a missing one is wrong, None is what no judge has decided.

    `exact` decides alone. `published` asks the judge about what its rule leaves open, in lower case. `judge` asks
    about every answer with a word that `exact` does not find right, boxes excepted.

    Raises:
        InputError: The protocol is unknown, or `judge` has no judge.
    """
    _check_protocol(protocol)
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
            found.append(_is_right(row, vocabulary))
            decided = found[index] or not row.predict.strip() or question_type(row.label, vocabulary) == "box"
            if protocol == "judge" and not decided:
                found[index] = None
                asked[index] = JudgeQuestion(row.question, row.label, row.predict)
    if judge is not None and asked:
        for index, verdict in zip(asked, judge(list(asked.values())), strict=True):
            found[index] = verdict
    return found


def rules_of(protocol: str, vocabulary: Vocabulary = VOCABULARY, judge: str = "none") -> dict[str, str | int]:
    """What a signature says of a protocol's rules.

    Args:
        judge: The judge's name; `exact` has none.

    Raises:
        InputError: The protocol is unknown.
    """
    _check_protocol(protocol)
    rules: dict[str, str | int] = {"protocol": protocol, "version": PROTOCOLS[protocol]}
    rules |= {} if protocol == "published" else {"synonyms": vocabulary.hash}
    return rules if protocol == "exact" else {**rules, "judge": judge}


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: must be one of {', '.join(PROTOCOLS)}")


def _is_right(row: Row, vocabulary: Vocabulary) -> bool:
    """Boxes are right if each is found and none is made up, all others by their text."""
    if question_type(row.label, vocabulary) != "box":
        return exact_verdict(row.label, row.predict or "", row.question, vocabulary)
    ((hits, made_up, missed),) = match_boxes([row], RIGHT).tolist()
    return hits > 0 and made_up == missed == 0
