"""One dialogue as neighbours hold it: messages with `<image>` tags, and what of ours they have no place for."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.records import SPLITS, TASKS, Box, Dialogue, Record, Turn

OWN = "sarlang_sft"
"""Key of a row that the neighbours ignore: JSON text of what they have no place for.

It is text, since readers fix the type of every column by the first ten megabytes of a file, where an optional value
may be missing or a list empty.
"""
IMAGE = "<image>"
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_LARGEST_SIDE = 2**31 - 1  # of a data folder's int32


class BadRow(ValueError):
    """Why a row cannot be used."""


@dataclass(frozen=True)
class Sample:
    """A record on its way out.

    Attributes:
        images: Its image paths as the neighbour shall find them.
        texts: The turns of each of its dialogues in the words of the format.
        boxes_in_split: Whether any text of its split names one.
    """

    record: Record
    images: list[str]
    texts: list[list[Turn]]
    boxes_in_split: bool = False


@dataclass(frozen=True)
class Row:
    """One dialogue on its way in.

    Attributes:
        number: Counts from 1 in its file.
        images: Paths as the file names them.
        turns: Texts in the words of the format, without image tags.
        own: What our export added; None in files made by others.
        boxes: `x y w h` in pixels or, if `fractions`, in parts of the image, where they are apart from the texts.
        fractions: See `boxes`.
        task: Where the format states it.
        left_out: What a record cannot hold.
        problem: Why the row cannot be used.
    """

    number: int
    images: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    own: dict[str, Any] | None = None
    boxes: list[Box] = field(default_factory=list)
    fractions: bool = False
    task: str | None = None
    left_out: list[str] = field(default_factory=list)
    problem: str | None = None


def own_text(record: Record, dialogue: Dialogue) -> str:
    """JSON text of what `read_own` makes the record and its dialogue of again; turns only if they name a box."""
    values = {**vars(record), **vars(dialogue), "dialogues": None}
    if not record.images:  # which otherwise tell what belongs together
        values["record"] = record.dialogues[0].id
    if not any(PLACEHOLDER.search(turn.question + turn.answer) for turn in dialogue.turns):
        del values["turns"]
    stated = {key: value for key, value in values.items() if value not in (None, [])}
    return json.dumps(stated, ensure_ascii=False, default=vars)


def read_own(values: dict[str, Any]) -> tuple[Record, Dialogue]:
    """The record without dialogues, and the dialogue, whose turns are empty if they name no box.

    Raises:
        BadRow: Something is missing or of the wrong type.
    """
    try:
        json.dumps(values, ensure_ascii=False).encode()  # fails on half a surrogate pair, which Parquet cannot hold
        record = Record(
            images=[_checked(name, str) for name in values.get("images", [])],
            width=_side(values["width"]),
            height=_side(values["height"]),
            source=_checked(values["source"], str),
            split=_one_of(values["split"], SPLITS),
            sensor=_checked(values.get("sensor"), str, NoneType),
            resolution_m=None if values.get("resolution_m") is None else _number(values["resolution_m"]),
            boxes=[_box(box["label"], box["points"]) for box in values.get("boxes", [])],
        )
        dialogue = Dialogue(
            id=_checked(values["id"], str),
            subset=_checked(values["subset"], str),
            task=_one_of(values["task"], TASKS),
            style=_checked(values.get("style"), str, NoneType),
            turns=[
                Turn(_checked(turn["question"], str), _checked(turn["answer"], str))
                for turn in values.get("turns", [])
            ],
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BadRow("broken extra keys") from error
    return record, dialogue


def _checked(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(value)
    return value


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(value)
    return value


def _side(value: Any) -> int:
    if not 0 <= _checked(value, int) <= _LARGEST_SIDE:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    number = float(_checked(value, int, float))
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _box(label: Any, points: Any) -> Box:
    box = Box(_checked(label, str), [_number(value) for value in points])
    if len(box.points) not in (4, 8):
        raise ValueError(points)
    return box


def corner_box(label: Any, corners: Any) -> Box:
    """The box between two opposite corners, given as four numbers.

    Raises:
        BadRow: They are not four finite numbers.
    """
    try:
        left, top, right, bottom = (_number(value) for value in corners)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("box is not four numbers") from error
    (left, right), (top, bottom) = sorted((left, right)), sorted((top, bottom))
    return Box(label if type(label) is str else "", [left, top, right - left, bottom - top])


def messages(turns: list[Turn], images: int, separator: str) -> Iterator[tuple[str, str]]:
    """(`user` or `assistant`, text) in order; in front of all stands one `<image>` per image, and the separator."""
    front = IMAGE * images + separator if images else ""
    for turn in turns:
        yield "user", front + turn.question
        yield "assistant", turn.answer
        front = ""


def read_row(item: Any, number: int, separator: str, needs_tags: bool = True) -> Row:
    """A row of messages; `problem` is set where it cannot be used.

    Read are `messages` (`role`, `content`), `conversations` (`from`, `value`) and `prompt` with `completion`; contents
    are text, or a list of typed parts.

    Args:
        item: As parsed.
        separator: What our export puts between the tags and the text.
        needs_tags: If not, texts without any `<image>` may have images.
    """
    images: list[str] = []
    try:
        images = [_path(image) for image in _listed(item.get("images", item.get("image")))]
        system, texts = _texts(item)
        own = None if item.get(OWN) is None else _checked(json.loads(item[OWN]), dict)
        tags = sum(text.count(IMAGE) for text in texts)
        if tags != len(images) and (tags or needs_tags):
            raise BadRow("number of <image> tags differs from the number of images")
        left_out = ["system prompt"] if system else []
        front = IMAGE * tags + separator if tags else ""
        if own is not None and texts[0].startswith(front):
            texts[0] = texts[0][len(front) :]
        else:
            if not "".join(texts[0].split()).startswith(IMAGE * tags):
                left_out.append("place of an <image> tag within the text (images come first)")
            texts = [text.replace(IMAGE, "").strip() for text in texts]
    except BadRow as error:
        return Row(number, images, problem=str(error))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return Row(number, images, problem="wrong columns")
    turns = [Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
    return Row(number, images, turns, own, left_out=left_out)


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _path(image: Any) -> str:
    """An image's path: as text, or as `datasets` stores it."""
    path = image["path"] if isinstance(image, dict) else image
    if not isinstance(path, str) or not path:
        raise BadRow("image is not a path")
    return path


def _texts(item: dict) -> tuple[str, list[str]]:
    """The system prompt, and the texts of question, answer, question, answer ... with their tags."""
    listed = item.get("messages", item.get("conversations"))
    if listed is None and isinstance(item["prompt"], str):
        listed = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["completion"]}]
    elif listed is None:
        listed = item["prompt"] + item["completion"]
    said = [
        (ROLES.get(one.get("role", one.get("from"))), _text(one.get("content", one.get("value")))) for one in listed
    ]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    if not said or [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise BadRow("roles out of order")
    return system, [text for _, text in said]


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(IMAGE if part["type"] == "image" else _checked(part["text"], str) for part in content)
