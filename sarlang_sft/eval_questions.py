"""The questions of a data folder that a model is asked once it is trained, and what is asked of its baselines."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.errors import InputError
from sarlang_sft.records import read_dialogue_table


@dataclass(frozen=True)
class Question:
    """One question of a data folder, with the turns before it as context.

    Attributes:
        images: Their names relative to the image root; empty for a question without image.
        size: Width and height of its first image in pixels.
        boxes: Of its image, if a text names one as `<box:i>`; else empty.
    """

    id: str
    images: list[str]
    subset: str
    task: str
    turns: list[dict[str, str]]
    size: tuple[int, int]
    boxes: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The stored answer."""
        return self.turns[-1]["answer"]

    @property
    def prompt(self) -> tuple[Any, ...]:
        """Differs where the model may answer differently, or its answer is read differently."""
        *before, last = self.turns
        texts = *(text for turn in before for text in turn.values()), last["question"]
        boxes = (self.size, str(self.boxes), PLACEHOLDER.search(self.label) is not None) if self.boxes else ()
        return tuple(self.images), texts, boxes


def read_questions(data: Path, split: str, subsets: list[str], tasks: list[str], limit: int | None) -> list[Question]:
    """The questions of a split in stored order; an empty list of subsets or tasks means all of them."""
    questions = [
        Question(
            f"{row['id']}#{index}",
            row["images"],
            row["subset"],
            row["task"],
            row["turns"][: index + 1],
            (row["width"], row["height"]),
            row["boxes"] or [],
        )
        for row in read_dialogue_table(data, split).to_pylist()
        if (not subsets or row["subset"] in subsets) and (not tasks or row["task"] in tasks)
        for index in range(len(row["turns"]))
    ]
    if not questions:
        raise InputError(f"--data {data}: split {split} holds no question of {[*subsets, *tasks] or 'any kind'}")
    return questions[:limit]


def still_to_ask(questions: Sequence[Question], answered: Collection[str]) -> list[Question]:
    """The first question of every prompt that has no answer yet: several references of a caption are asked for once.

    Args:
        answered: Ids of questions.
    """
    known = {question.prompt for question in questions if question.id in answered}
    left: dict[tuple[Any, ...], Question] = {}
    for question in questions:
        if question.prompt not in known:
            left.setdefault(question.prompt, question)
    return list(left.values())


def exchange_images(questions: list[Question]) -> list[Question]:
    """Every question about another scene: image i of n is replaced by image i + n // 2, in order of appearance.

    What a model still answers rightly then it knows without seeing (the blind baseline).

    Raises:
        InputError: All of them are about one scene.
    """
    order = list(dict.fromkeys(tuple(question.images) for question in questions))
    if len(order) < 2:
        raise InputError("--exchange_images: needs questions about two images at least; raise --limit")
    shift = len(order) // 2
    other = {images: list(order[(index + shift) % len(order)]) for index, images in enumerate(order)}
    return [replace(question, images=other[tuple(question.images)]) for question in questions]


def leave_out_images(questions: list[Question]) -> list[Question]:
    """Every question without its images: what is still answered rightly, the text alone gives (text-only baseline)."""
    return [replace(question, images=[]) for question in questions]
