"""`<box:i>` in the texts of a data folder, written for the model that will read them."""

import pyarrow as pa
from transformers import ProcessorMixin

from sarlang_sft.backbones import Backbone
from sarlang_sft.boxes import Frame, write_boxes
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import AUGMENTING_OPS, frame_after, parse_ops

Turns = list[dict[str, str]]


def frame_of(processor: ProcessorMixin, backbone: Backbone, image_ops: list[str], width: int, height: int) -> Frame:
    """The picture that the model sees of a stored image of this size in pixels."""
    before = frame_after(image_ops, width, height)
    return before.then(backbone.frame(processor, round(before.size[0]), round(before.size[1])))


def write_turns(turns: Turns, boxes: list[dict], backbone: Backbone, frame: Frame) -> Turns:
    """Turns with every `<box:i>` in the family's words.

    Raises:
        ValueError: There is no i-th box, or nothing of it is inside the picture.
    """
    points = [box["points"] for box in boxes]
    return [
        {name: write_boxes(text, points, backbone.box_convention, frame) for name, text in turn.items()}
        for turn in turns
    ]


def write_question(
    turns: Turns,
    boxes: list[dict],
    size: tuple[int, int],
    processor: ProcessorMixin,
    backbone: Backbone,
    image_ops: list[str],
) -> tuple[Frame, Turns]:
    """Turns up to a question with their boxes written, and the picture that the model sees.

    The answer that is sought stays out: its box may be outside the picture.

    Args:
        size: Width and height of the stored image in pixels.

    Raises:
        ValueError: See `write_turns`.
    """
    frame = frame_of(processor, backbone, image_ops, *size)
    *before, last = turns
    written = write_turns([*before, {"question": last["question"]}], boxes, backbone, frame)
    return frame, [*written[:-1], {**written[-1], "answer": ""}]


def write_table(
    table: pa.Table, processor: ProcessorMixin, backbone: Backbone, image_ops: list[str]
) -> tuple[pa.Table, dict[int, str]]:
    """The rows of `read_mixture` with their boxes written.

    Boxes lie in the first image of a record, the only one whose size it stores.

    Returns:
        The table, and why a row of it cannot be written, by its number: `no box of this number` or
        `box outside the picture`.

    Raises:
        InputError: An augmenting operation would move the pictures and not the boxes.
    """
    mentioned = table["boxes"].is_valid().to_numpy()
    rows = mentioned.nonzero()[0].tolist()
    if not rows:
        return table, {}
    moving = [name for name, _ in parse_ops(image_ops) if name in AUGMENTING_OPS]
    if moving:
        raise InputError(
            f"image_ops {moving[0]}: moves the picture under the boxes of {len(rows)} texts; leave it out"
        )
    turns = table["turns"].to_pylist()
    frames: dict[tuple[int, int], Frame] = {}
    failed: dict[int, str] = {}
    for row in rows:
        size = table["width"][row].as_py(), table["height"][row].as_py()
        if size not in frames:
            frames[size] = frame_of(processor, backbone, image_ops, *size)
        try:
            turns[row] = write_turns(turns[row], table["boxes"][row].as_py(), backbone, frames[size])
        except ValueError as error:
            failed[row] = str(error)
    column = table.schema.get_field_index("turns")
    return table.set_column(column, "turns", pa.array(turns, table.schema.field(column).type)), failed
