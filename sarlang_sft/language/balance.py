"""Which classes are asked for where, so that yes and no come equally often with every class.

A model that sees nothing but the name of a class is right half of the time. Only classes that the set has are asked
for, and where they are not, an image with other objects is preferred to an empty one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sarlang_sft.annotations.model import LabelledImage
from sarlang_sft.boxes import upright
from sarlang_sft.language.dialogues import YesNo
from sarlang_sft.language.facts import SAME_PLACE
from sarlang_sft.language.places import overlap_of
from sarlang_sft.language.things import Thing


def choose_identifications(
    images: Sequence[LabelledImage], things: Mapping[str, Thing], rng: np.random.Generator
) -> list[list[YesNo]]:
    """For every image the classes whose presence is asked for there; balanced within each split.

    Classes that an image is unsure of are not asked for unless a box shows one.
    """
    columns = {thing: column for column, thing in enumerate(dict.fromkeys(things.values()))}
    there = np.zeros((len(images), len(columns)), bool)
    absent = np.ones_like(there)
    for row, image in enumerate(images):
        there[row, [columns[things[label]] for label in {box.label for box in image.boxes}]] = True
        absent[row, [columns[things[label]] for label in image.unsure if label in things]] = False
        absent[row] &= "" not in image.unsure
    absent &= ~there
    splits = np.array([image.split for image in images])
    filled = there.any(axis=1)
    chosen: list[list[YesNo]] = [[] for _ in images]
    for split in dict.fromkeys(splits.tolist()):
        for thing, column in columns.items():
            of_split = splits == split
            yes, no = np.flatnonzero(of_split & there[:, column]), np.flatnonzero(of_split & absent[:, column])
            _balance(thing, yes, no, filled, chosen, rng)
    return chosen


def choose_named_boxes(
    images: Sequence[LabelledImage], things: Mapping[str, Thing], rng: np.random.Generator
) -> tuple[list[int | None], list[list[YesNo]]]:
    """For every image one box that is to be named, and the classes that are asked of it; balanced within each split.

    A box in whose place lies one of another class is not chosen. Of the classes that a box is not, those that the
    image has elsewhere are preferred.
    """
    numbers = [_plain_box(image, things, rng) for image in images]
    chosen: list[list[YesNo]] = [[] for _ in images]
    own = [
        None if number is None else things[image.boxes[number].label]
        for image, number in zip(images, numbers, strict=True)
    ]
    present = [{things[box.label] for box in image.boxes} for image in images]
    for split in dict.fromkeys(image.split for image in images):
        rows = np.array([row for row, image in enumerate(images) if image.split == split and own[row] is not None])
        for thing in dict.fromkeys(things.values()):
            of_thing = np.array([own[row] == thing for row in rows], bool)
            hard = np.zeros(len(images), bool)
            hard[[row for row in rows if thing in present[row]]] = True
            _balance(thing, rows[of_thing], rows[~of_thing], hard, chosen, rng)
    return numbers, chosen


def _balance(
    thing: Thing,
    yes: np.ndarray,
    no: np.ndarray,
    preferred: np.ndarray,
    chosen: list[list[YesNo]],
    rng: np.random.Generator,
) -> None:
    """Ask for a class in as many images that have it as in images that do not.

    Args:
        yes, no: Numbers of images.
        preferred: (images,) bool; among `no`, these come first.
    """
    count = min(len(yes), len(no))
    no = rng.permutation(no)
    first = no[np.argsort(~preferred[no], kind="stable")][:count]
    for rows, verdict in ((rng.permutation(yes)[:count], True), (first, False)):
        for row in rows.tolist():
            chosen[row].append(YesNo(thing, verdict))


def _plain_box(image: LabelledImage, things: Mapping[str, Thing], rng: np.random.Generator) -> int | None:
    if not image.boxes:
        return None
    number = int(rng.integers(len(image.boxes)))
    own, extent = things[image.boxes[number].label], upright(image.boxes[number].points)
    same_place = any(
        things[box.label] is not own and overlap_of(extent, upright(box.points)) >= SAME_PLACE for box in image.boxes
    )
    return None if same_place else number
