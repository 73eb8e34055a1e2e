"""What answers are worth that look at no image: baselines that cost nothing, read from the training split alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from sarlang_sft.records import open_split, read_dialogue_table
from sarlang_sft.scenes import CLASSES
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.predictions import CAPTION_TASK, Row

MAJORITY, RANDOM = "majority", "random"
_NUMBER = re.compile(r"\d+(\.\d+)?")


class TrainingAnswers(NamedTuple):
    """How often every answer was given in training.

    Attributes:
        classes: Matches the name of a class, in the singular or the plural.
        by_form: Form of question -> answer -> how often.
    """

    classes: re.Pattern[str]
    by_form: dict[str, Counter[str]]

    def to(self, question: str) -> Counter[str]:
        """Of the questions of the same form; empty if there was none."""
        return self.by_form.get(question_form(question, self.classes), Counter())


def question_form(question: str, classes: re.Pattern[str]) -> str:
    """A question with class names and numbers masked, so that questions of one form are counted together."""
    return _NUMBER.sub("#", classes.sub("<class>", question))


def class_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the names as a word, in the singular or the plural, in any case; longer names first."""
    longest_first = sorted({*names}, key=lambda name: (-len(name), name))
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})s?\b", re.IGNORECASE)


def read_training_answers(data: Path) -> TrainingAnswers:
    """Every answer of the training split but captions; classes are SARDet-100K's and those of the data's boxes.

    A data folder without a training split has no answers.

    Raises:
        InputError: The training split cannot be read.
    """
    if not (data / "train.parquet").is_file():
        return TrainingAnswers(class_pattern(CLASSES), {})
    with open_split(data, "train", ["boxes"]) as file:
        boxes = pc.list_flatten(file.read(columns=["boxes"])["boxes"])
    labels = pc.unique(pc.struct_field(boxes, "label")).to_pylist()
    classes = class_pattern([*CLASSES, *(label for label in labels if label)])
    by_form: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read_dialogue_table(data, "train").select(["task", "turns"]).to_pylist():
        if row["task"] != CAPTION_TASK:
            for turn in row["turns"]:
                by_form[question_form(turn["question"], classes)][turn["answer"]] += 1
    return TrainingAnswers(classes, dict(by_form))


def majority_verdicts(known: TrainingAnswers, rows: Sequence[Row]) -> list[bool]:
    """Whether the most frequent training answer of the question's form is right; a form never seen counts as wrong."""

    @cache
    def answer(question: str) -> str:
        return next((text for text, _ in known.to(question).most_common(1)), "")

    return [exact_verdict(row.label, answer(row.question)) for row in rows]


def random_chances(known: TrainingAnswers, rows: Sequence[Row]) -> list[float]:
    """How likely (0..1) an answer is right that is drawn evenly among the distinct training answers of the form.

    Counted, not drawn, so their mean is the exact expectation; a form never seen counts as wrong.
    """

    @cache
    def chance(form: str, label: str) -> float:
        answers = known.by_form.get(form, Counter())
        return sum(exact_verdict(label, answer) for answer in answers) / max(len(answers), 1)

    return [chance(question_form(row.question, known.classes), row.label) for row in rows]
