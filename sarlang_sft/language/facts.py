"""What is true of the boxes of one image, as far as texts speak of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from sarlang_sft.boxes import upright
from sarlang_sft.language.places import cell_of, most, region_of
from sarlang_sft.language.things import Thing
from sarlang_sft.records import Box

SAME_PLACE = 0.5  # overlap from which on a box does not tell which of two objects is meant


@dataclass(frozen=True)
class Group:
    """All objects of one class in an image.

    Attributes:
        numbers: Of their boxes in the record.
        region: Where more than half of them are (`REGIONS`), or None.
        cells: Numbers of boxes by part of the image (`CELLS`); empty where a centre lies on a border.
        sure: There are no others of this class: what is said of all of them is true.
    """

    thing: Thing
    numbers: tuple[int, ...]
    region: str | None
    cells: Mapping[str, tuple[int, ...]]
    sure: bool

    @property
    def one(self) -> bool:
        return len(self.numbers) == 1


@dataclass(frozen=True)
class Facts:
    """The boxes of an image and their groups.

    Attributes:
        boxes: Of the record; labels are classes of the set.
        width, height: Of the image in pixels.
        things: The class of each box.
        plain: Numbers of the boxes that mark one object.
        groups: In the order of the set's classes.
        complete: No class is there but those of the groups.
    """

    boxes: Sequence[Box]
    width: int
    height: int
    things: Sequence[Thing]
    plain: Sequence[int]
    groups: tuple[Group, ...]
    complete: bool


def plain_boxes(boxes: Sequence[Box], things: Sequence[Thing]) -> list[int]:
    """Numbers of the boxes that mark one object: none of another class lies in their place."""
    if len({*things}) < 2:
        return list(range(len(boxes)))
    left, top, right, bottom = np.array([upright(box.points) for box in boxes]).T
    width = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    height = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (right - left) * (bottom - top)
    overlap = common / (np.add.outer(areas, areas) - common)
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    kinds = np.array([numbers[thing] for thing in things])
    hidden = ((overlap >= SAME_PLACE) & np.not_equal.outer(kinds, kinds)).any(axis=1)
    return np.flatnonzero(~hidden).tolist()


def facts_of(boxes: Sequence[Box], width: int, height: int, unsure: Set[str], things: Mapping[str, Thing]) -> Facts:
    """The facts of one image.

    Args:
        boxes: Clean ones, with labels that `things` has.
        width, height: Of the image in pixels.
        unsure: Labels of which there are objects without a box here; "" among them: of no known class.
        things: By label, in the order of the set's classes.
    """
    of_boxes = [things[box.label] for box in boxes]
    numbers: dict[Thing, list[int]] = defaultdict(list)
    for number, thing in enumerate(of_boxes):
        numbers[thing].append(number)
    doubtful = {things.get(label) for label in unsure}
    present = numbers if len(numbers) < 2 else [thing for thing in dict.fromkeys(things.values()) if thing in numbers]
    groups = [_group(thing, numbers[thing], boxes, width, height, thing not in doubtful) for thing in present]
    plain = plain_boxes(boxes, of_boxes)
    return Facts(boxes, width, height, of_boxes, plain, tuple(groups), complete=doubtful <= numbers.keys())


def _group(thing: Thing, numbers: Sequence[int], boxes: Sequence[Box], width: int, height: int, sure: bool) -> Group:
    cells: dict[str, tuple[int, ...]] = {}
    for number in numbers:
        cell = cell_of(boxes[number].points, width, height)
        if cell is None:
            cells = {}
            break
        cells[cell] = (*cells.get(cell, ()), number)
    regions = [region_of(boxes[number].points, width, height) for number in numbers]
    return Group(thing, tuple(numbers), most(regions), cells, sure)
