"""What a judge is asked about answers to questions, and SARLANG-1M's published rule, kept with all its quirks.

The rule of Evaluate_VQA.py (arXiv 2504.03254) is here to compare with published numbers: it takes "1" in "10" and
"car" in "cargo" for right, and asks a paid judge about what is left.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class JudgeQuestion(NamedTuple):
    """One answer that a judge decides: the question about the image, its true answer, and the predicted one."""

    question: str
    label: str
    predict: str


Judge = Callable[[Sequence[JudgeQuestion]], list[bool | None]]
"""Says of every answer, in order, whether it is right; None where no usable reply came."""

_CLOSED = {"yes", "no", *map(str, range(100))}


def published_verdict(label: str, predict: str) -> bool | None:
    """What the published rule says without its judge; None where it asks one."""
    label, predict = label.lower(), predict.lower()
    if label in predict:
        return True
    return False if label in _CLOSED else None


def published_question(question: str, label: str, predict: str) -> JudgeQuestion:
    """What the published rule shows to its judge: all in lower case."""
    return JudgeQuestion(question.lower(), label.lower(), predict.lower())
