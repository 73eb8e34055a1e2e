"""SARChat-Bench-2M (arXiv 2502.08168): a JSON list of ms-swift messages with task tags and boxes in the texts.

A row of it, as its authors' training log prints one: `<image>`, `[refer] Locate 1 aircraft.` and the answer
`{<393><426><470><494>} (bottom right)`: left, top, right and bottom in pixels of the 512 x 512 image, and the third of
the image each way. Of its six tags only `[count]` and `[refer]` are known to us; the others are named after its files
(`SARChat_classify_identify_single_test.json`).
"""

import re
from dataclasses import replace
from typing import Any

from sarlang_sft.boxes import PLACEHOLDER, upright
from sarlang_sft.formats.llamafactory import row as plain_row
from sarlang_sft.formats.rows import Row, Sample, corner_box
from sarlang_sft.formats.words import Words, named_boxes, place_box
from sarlang_sft.language.places import cell_at
from sarlang_sft.records import Box, Dialogue, Record, Turn

TAGS = {
    "description": "describe",
    "identification": "exist",
    "classification": "classify",
    "counting": "count",
    "referring": "region",
    "positioning": "position",
    "others": "others",
    "grounding": "refer",
    "cross_identification": "identify",
}
"""Their `[refer]` asks where things are: what we call grounding; tags of tasks that SARChat lacks are our own."""
TASKS = {tag: task for task, tag in TAGS.items()} | {"grounding": "grounding"}
SEPARATOR = "\n"
_TAG = re.compile(r"\[(\w+)\] ?")
_BOX = re.compile(r"\{\s*<(\d+)>\s*<(\d+)>\s*<(\d+)>\s*<(\d+)>\s*\}")


def _region(box: list[float], width: int, height: int) -> str:
    """The third of the image, each way, that holds the centre of `left top right bottom`."""
    across, down = (box[0] + box[2]) / 2 / max(width, 1), (box[1] + box[3]) / 2 / max(height, 1)
    return cell_at(across, down, border=0)


def _write(text: str, record: Record, answer: bool) -> str:
    boxes = iter(upright(box.points) for box in named_boxes(text, record))

    def put(_: re.Match[str]) -> str:
        box = next(boxes)
        corners = "".join(f"<{max(round(value), 0)}>" for value in box)
        return f"{{{corners}}}" + (f" ({_region(box, record.width, record.height)})" if answer else "")

    return PLACEHOLDER.sub(put, text)


def _read(row: Row, boxes: list[Box], size: tuple[int, int]) -> list[Turn]:
    def put(text: str) -> str:
        return _BOX.sub(lambda match: place_box(corner_box("", [int(word) for word in match.groups()]), boxes), text)

    return [Turn(put(turn.question), put(turn.answer)) for turn in row.turns]


WORDS = Words(_write, _read)


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """`messages` and `images`, the first question after the tag of its task."""
    tagged = replace(turns[0], question=f"[{TAGS[dialogue.task]}] {turns[0].question}")
    return plain_row(sample, dialogue, [tagged, *turns[1:]], SEPARATOR)


def take_tag(row: Row, item: dict[str, Any]) -> Row:
    """The row without the tag of its task, if it has a known one."""
    match = _TAG.match(row.turns[0].question) if row.turns else None
    if not match or match[1] not in TASKS:
        return row
    first = replace(row.turns[0], question=row.turns[0].question[match.end() :])
    return replace(row, turns=[first, *row.turns[1:]], task=TASKS[match[1]])
