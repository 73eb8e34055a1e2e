"""VLMEvalKit: one table per split of the questions that a model is asked, which it reads as a custom VQA data set."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sarlang_sft.formats.rows import Sample
from sarlang_sft.formats.words import Words, read_verbatim, write_pixels
from sarlang_sft.records import SPLITS, Dialogue, Record, Turn

WORDS = Words(write_pixels, read_verbatim)
COLUMNS = ("index", "image_path", "question", "answer", "category", "split", "subset", "id")
CANNOT_HOLD: dict[str, Callable[[Record, Dialogue], bool]] = {
    "several turns (a row holds one question)": lambda record, dialogue: len(dialogue.turns) > 1,
    "no image": lambda record, dialogue: not record.images,
}


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """`image_path` is one path, or the text of a list of several; `category` is the task, `id` that of predictions."""
    [turn] = turns
    return {
        "image_path": sample.images[0] if len(sample.images) == 1 else str(sample.images),
        "question": turn.question,
        "answer": turn.answer,
        "category": dialogue.task,
        "split": sample.record.split,
        "subset": dialogue.subset,
        "id": f"{dialogue.id}#0",
    }


def write_table(folder: Path, split: str, rows: Iterable[dict[str, Any]]) -> None:
    """`<split>.tsv`, its rows numbered from 0."""
    with open(folder / f"{split}.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"index": index, **one} for index, one in enumerate(rows))


def name_tables(folder: Path, name: str) -> None:
    """`<name>_<split>.tsv`, since VLMEvalKit calls a data set by its file's name."""
    for split in SPLITS:
        if (table := folder / f"{split}.tsv").is_file():
            table.rename(folder / f"{name}_{split}.tsv")
