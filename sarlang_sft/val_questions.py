"""Which questions of the split `val` are asked while a model trains, and which of them together."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from sarlang_sft.packing import PlannedRows


@dataclass(frozen=True)
class ValQuestion:
    """One question of the sample; the last of `turns`, whose boxes are in the model's own words.

    Attributes:
        image_root: Folder that the names `images` are relative to.
    """

    id: str
    image_root: Path
    images: tuple[str, ...]
    subset: str
    task: str
    turns: list[dict[str, str]]

    @property
    def about(self) -> tuple[Path | str, ...]:
        """What questions that are answered together share: the files of their images, or else their dialogue."""
        return self.paths or (self.id.rpartition("#")[0],)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of its images."""
        return tuple((self.image_root / image).absolute() for image in self.images)

    @property
    def prompt(self) -> tuple[Path | str, ...]:
        """Differs where the model may answer differently."""
        *before, last = self.turns
        return *self.about, *(text for turn in before for text in turn.values()), last["question"]


def choose_questions(rows: PlannedRows, count: int) -> list[ValQuestion]:
    """The sample: at most `count` questions of the planned dialogues, those of an image side by side.

    Images come in the order of a hash of their names, so that neither the order of data folders nor that of their
    rows changes the sample. The last image may have more questions than are taken.
    """
    if not count:
        return []
    planned = np.unique(np.concatenate([tree for row in rows.epochs[0] for tree in row]))
    found = {}
    for row in rows.dialogues.select(planned).to_list():
        for place, turn in enumerate(row["turns"]):
            if turn["answer"].strip():
                question = ValQuestion(
                    f"{row['id']}#{place}",
                    Path(row["image_root"]),
                    tuple(row["images"]),
                    row["subset"],
                    row["task"],
                    row["turns"][: place + 1],
                )
                found[question.about, question.id, turn["question"]] = question  # a folder may be named twice

    def order(question: ValQuestion) -> tuple[bytes, tuple[str, ...], str, str]:
        names = "\n".join(question.images) or question.id
        about = tuple(map(str, question.about))
        return hashlib.sha256(names.encode()).digest(), about, question.id, question.turns[-1]["question"]

    return sorted(found.values(), key=order)[:count]


def describe_questions(questions: Sequence[ValQuestion]) -> str:
    """What the sample consists of, in one line."""
    images = len({question.about for question in questions})
    tasks = Counter(question.task for question in questions)
    listed = ", ".join(f"{task} {number:,}" for task, number in sorted(tasks.items()))
    return f"val questions: {len(questions):,} on {images:,} images ({listed})"


def first_places(questions: Sequence[ValQuestion]) -> dict[tuple[Path | str, ...], int]:
    """Where each prompt first stands in the sample."""
    places: dict[tuple[Path | str, ...], int] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.prompt, place)
    return places


def prompts_by_image(questions: Sequence[ValQuestion]) -> list[list[int]]:
    """Places in the sample; of equal prompts, as of several captions of an image, only that of the first."""
    unlike = sorted(first_places(questions).values())
    return [list(group) for _, group in groupby(unlike, key=lambda place: questions[place].about)]


def make_batches(images: list[list[int]], size: int) -> list[list[int]]:
    """What is asked at once of [`prompts_by_image`]: at most `size` prompts, of whole images if they fit."""
    batches: list[list[int]] = []
    for image in images:
        parts = [image[start : start + size] for start in range(0, len(image), size)]
        for part in parts:
            if batches and len(batches[-1]) + len(part) <= size:
                batches[-1] += part
            else:
                batches.append(part)
    return batches
