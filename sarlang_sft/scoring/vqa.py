"""Are answers to questions right? A deterministic protocol, and the published one with all its quirks.

`exact` compares what two answers name, after spelling is evened out; the tables below are all it knows.
`published` is the rule of SARLANG-1M's Evaluate_VQA.py (arXiv 2504.03254), kept to compare with published numbers: it
takes "1" in "10" and "car" in "cargo" for right, and asks a paid judge about what is left.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, break_down
from sarlang_sft.scoring.published import Judge, JudgeQuestion, published_question, published_verdict

PROTOCOLS = ("exact", "published", "judge")

# One name for each thing; plurals in -s are added. No "vehicle" for car: ships, aircraft and trucks are vehicles too.
SYNONYMS = {
    "ship": ("ship", "vessel", "boat"),
    "aircraft": ("aircraft", "airplane", "aeroplane", "plane"),
    "car": ("car", "automobile"),
    "tank": ("tank", "storage tank", "oil tank"),
    "bridge": ("bridge",),
    "harbor": ("harbor", "harbour", "port"),
    # the pairs that the published judge is told
    "football": ("football", "soccer"),
    "playground": ("playground", "ground track field"),
    "building": ("building", "rooftop"),
    "pond": ("pond", "swimming pool"),
}
SPELLINGS = {"upper": "top", "lower": "bottom", "centre": "center", "middle": "center"}
POSITIONS = {"top", "bottom", "left", "right", "center", "near"}
POSITION_FILLERS = {"side", "part", "corner", "area", "of", "in", "at", "on", "to", "image"}
ARTICLES = {"a", "an", "the"}
# fmt: off
UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

_PHRASES = {
    **SPELLINGS,
    **{form + ending: name for name, forms in SYNONYMS.items() for form in forms for ending in ("", "s")},
    **{word: str(number) for number, word in enumerate(UNITS)},
    **{ten: str(value) for value, ten in zip(range(20, 100, 10), TENS, strict=True)},
    **{
        f"{ten} {UNITS[unit]}": str(value + unit)
        for value, ten in zip(range(20, 100, 10), TENS, strict=True)
        for unit in range(1, 10)
    },
}
_PHRASE = re.compile(rf"\b({'|'.join(sorted(_PHRASES, key=len, reverse=True))})\b")
# A comma before a digit is no break: the numbers of a box are an ordered list, not a set.
_LIST_BREAK = re.compile(r"[,;&]\s*(?=[^\W\d_])|\band\b")
_TOKEN = re.compile(r"(?P<number>(?:(?<!\w)-)?\d*\.?\d+)|[^\W_]+")
_WORD = re.compile(r"[^\W_]+")
# "No." and "No, ..." are a verdict; "no clear pattern" answers another question.
_VERDICT = re.compile(r"\W*(yes\b|no\b(?=\s*(?:[^\w\s-]|$)))")


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower().strip()


def _normalise(part: str) -> str:
    tokens = [
        format(Decimal(match["number"]).normalize(), "f") if match["number"] else match[0]
        for match in _TOKEN.finditer(part)
    ]
    words = [token for token in tokens if token not in ARTICLES] or tokens
    return _PHRASE.sub(lambda match: _PHRASES[match[1]], " ".join(words))


@lru_cache(maxsize=65536)
def things_named(answer: str) -> frozenset[str]:
    """What an answer names, evened out: list items as a set, a position as its words; empty if there is no word."""
    items = {_normalise(part) for part in _LIST_BREAK.split(_fold(answer))} - {""}
    words = {word for item in items for word in item.split()} - POSITION_FILLERS
    return frozenset(words) if words and words <= POSITIONS else frozenset(items)


def exact_verdict(label: str, predict: str) -> bool:
    """Whether `predict` says the same as `label`: by the first word for yes and no, else by the things named."""
    verdict = _VERDICT.match(_fold(label))
    if verdict:
        first = _WORD.search(_fold(predict))
        return first is not None and first[0] == verdict[1]
    named = things_named(predict)
    return bool(named) and named == things_named(label)


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
            found.append(exact_verdict(row.label, row.predict))
            if protocol == "judge" and not found[index] and row.predict.strip():
                found[index] = None
                asked[index] = JudgeQuestion(row.question, row.label, row.predict)
    if judge is not None and asked:
        for index, verdict in zip(asked, judge(list(asked.values())), strict=True):
            found[index] = verdict
    return found
