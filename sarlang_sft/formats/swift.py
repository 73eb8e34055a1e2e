"""ms-swift: JSON lines of `messages` and `images`, with boxes apart in `objects` and `<bbox>` in the texts."""

import re
from dataclasses import replace
from typing import Any

from sarlang_sft.boxes import PLACEHOLDER, upright
from sarlang_sft.formats.llamafactory import row as plain_row
from sarlang_sft.formats.rows import BadRow, Row, Sample, corner_box
from sarlang_sft.formats.words import Words, named_boxes, place_box
from sarlang_sft.records import Box, Dialogue, Record, Turn

SEPARATOR = ""
UNNAMED = [0.0, 0.0, 0.0, 0.0]
"""Stands in rows without a box, where others of the file have some: readers fix the type of a column by the first ten
megabytes of a file, which must not hold empty lists alone."""


def _write(text: str, record: Record, answer: bool) -> str:
    if named_boxes(text, record) and not record.images:
        raise ValueError("box without an image")
    return PLACEHOLDER.sub("<bbox>", text)


def _read(row: Row, boxes: list[Box], size: tuple[int, int]) -> list[Turn]:
    scale = size if row.fractions else (1, 1)
    placed = iter(
        replace(box, points=[value * scale[place % 2] for place, value in enumerate(box.points)]) for box in row.boxes
    )
    labels = iter(box.label for box in row.boxes)

    def put(text: str) -> str:
        text = re.sub("<ref-object>", lambda _: next(labels), text)
        return re.sub("<bbox>", lambda _: place_box(next(placed), boxes), text)

    try:
        return [Turn(put(turn.question), put(turn.answer)) for turn in row.turns]
    except StopIteration as error:
        raise BadRow("fewer objects than tags of them") from error


WORDS = Words(_write, _read, reserved=("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>"))


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """`objects` holds the corners of the boxes that the texts name, in their order, in pixels of the stored image."""
    if not sample.boxes_in_split:
        return plain_row(sample, dialogue, turns)
    texts = "".join(turn.question + turn.answer for turn in dialogue.turns)
    named = [upright(box.points) for box in named_boxes(texts, sample.record)]
    return plain_row(sample, dialogue, turns) | {"objects": {"bbox": named or [UNNAMED]}}


def add_objects(row: Row, item: dict[str, Any]) -> Row:
    """The row with the boxes of its `objects`."""
    objects = item.get("objects")
    if not objects or row.problem:
        return row
    try:
        if any(objects.get("image_id") or []):  # boxes of our records lie in the first image
            return replace(row, problem="box of another image than the first")
        labels = objects.get("ref") or []
        corners = objects.get("bbox") or []
        labels = [*labels, *[""] * (len(corners) - len(labels))]
        boxes = [corner_box(label, corner) for label, corner in zip(labels, corners, strict=False)]
        return replace(row, boxes=boxes, fractions=objects.get("bbox_type") == "norm1")
    except BadRow as error:
        return replace(row, problem=str(error))
    except (TypeError, AttributeError):
        return replace(row, problem="wrong columns")
