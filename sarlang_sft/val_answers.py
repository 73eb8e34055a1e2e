"""Answers to the questions of the split `val` while a model trains."""

from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    """One answered question; `images` are absolute, `right` is None where no verdict exists (descriptions)."""

    id: str
    images: list[Path]
    task: str
    question: str
    label: str
    predict: str
    right: bool | None
