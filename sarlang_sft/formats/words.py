"""Boxes in the texts of neighbours: `<box:i>` in their words, and their words as `<box:i>` again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sarlang_sft.boxes import PIXELS, PLACEHOLDER, Frame, upright, write_boxes
from sarlang_sft.formats.rows import IMAGE, Row
from sarlang_sft.records import Box, Record, Turn

Texts = list[Turn]


@dataclass(frozen=True)
class Words:
    """How a format speaks of boxes.

    Attributes:
        write: A text of a record in the format's words; `answer` tells answers from questions. Raises ValueError with
            the reason if a box cannot be written.
        read: Texts of a row made by others with `<box:i>`; boxes that are not in the list yet are appended to it.
        reserved: Texts that hold one of these would be misread.
    """

    write: Callable[[str, Record, bool], str]
    read: Callable[[Row, list[Box], tuple[int, int]], Texts]
    reserved: tuple[str, ...] = (IMAGE,)

    def write_turns(self, turns: Sequence[Turn], record: Record) -> Texts:
        """The turns of a dialogue of `record`; raises ValueError with the reason if they cannot be written."""
        if not turns:
            raise ValueError("dialogue without turns")
        if any(tag in turn.question + turn.answer for turn in turns for tag in self.reserved):
            raise ValueError("text holds a tag of the format")
        return [
            Turn(self.write(turn.question, record, False), self.write(turn.answer, record, True)) for turn in turns
        ]


def verbatim(text: str, record: Record, answer: bool) -> str:
    """The text as it is."""
    return text


def read_verbatim(row: Row, boxes: list[Box], size: tuple[int, int]) -> Texts:
    """The texts as they are."""
    return row.turns


def write_pixels(text: str, record: Record, answer: bool) -> str:
    """Boxes as `[left, top, right, bottom]` or, if rotated, four corners, in whole pixels of the first image."""
    if "<box:" not in text:
        return text
    return write_boxes(text, [box.points for box in record.boxes], PIXELS, Frame.of(record.width, record.height))


def named_boxes(text: str, record: Record) -> list[Box]:
    """The boxes that a text names, in its order; raises ValueError if there is none of a number."""
    numbers = [int(number) for number in PLACEHOLDER.findall(text)]
    if any(number >= len(record.boxes) for number in numbers):
        raise ValueError("no box of this number")
    return [record.boxes[number] for number in numbers]


def place_box(box: Box, boxes: list[Box]) -> str:
    """`<box:i>` for a box, which is appended to `boxes` unless one of them has its corners to half a pixel."""
    for number, known in enumerate(boxes):
        apart = [abs(one - other) for one, other in zip(upright(box.points), upright(known.points), strict=True)]
        if max(apart) <= 0.5 and box.label in ("", known.label):
            return f"<box:{number}>"
    boxes.append(box)
    return f"<box:{len(boxes) - 1}>"
