"""Which classes are asked for where, so that yes and no come equally often with every class.

A model that sees nothing but the name of a class is right half of the time. Only classes that the set has are asked
for, and where they are not, an image with other objects is preferred to an empty one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sarlang_sft.annotations.model import LabelledImage
from sarlang_sft.language.dialogues import YesNo
from sarlang_sft.language.facts import plain_boxes
from sarlang_sft.language.things import Thing


def choose_identifications(
    images: Sequence[LabelledImage], things: Mapping[str, Thing], rng: np.random.Generator
) -> list[list[YesNo]]:
    """For every image the classes whose presence is asked for there; balanced within each split.

    Classes that an image is unsure of are not asked for unless a box shows one.
    """
    different = list(dict.fromkeys(things.values()))
    columns = {label: different.index(thing) for label, thing in things.items()}
    there = np.zeros((len(images), len(different)), bool)
    unsure = np.zeros_like(there)
    for row, image in enumerate(images):
        there[row, [columns[label] for label in {box.label for box in image.boxes}]] = True
        unsure[row, [columns[label] for label in image.unsure if label in columns]] = True
        unsure[row] |= "" in image.unsure
    preferred = np.repeat(there.any(axis=1, keepdims=True), len(different), axis=1)
    return balance(different, there, ~there & ~unsure, preferred, [image.split for image in images], rng)


def choose_named_boxes(
    images: Sequence[LabelledImage], things: Mapping[str, Thing], rng: np.random.Generator
) -> tuple[list[int | None], list[list[YesNo]]]:
    """For every image one box that is to be named, and the classes that are asked of it; balanced within each split.

    A box in whose place lies one of another class is not chosen. Of the classes that a box is not, those that the
    image has elsewhere are preferred.
    """
    different = list(dict.fromkeys(things.values()))
    columns = {label: different.index(thing) for label, thing in things.items()}
    there = np.zeros((len(images), len(different)), bool)
    present = np.zeros_like(there)
    numbers: list[int | None] = []
    for row, image in enumerate(images):
        plain = plain_boxes(image.boxes, [things[box.label] for box in image.boxes])
        number = plain[int(rng.integers(len(plain)))] if plain else None
        numbers.append(number)
        if number is not None:
            there[row, columns[image.boxes[number].label]] = True
            present[row, [columns[label] for label in {box.label for box in image.boxes}]] = True
    absent = there.any(axis=1, keepdims=True) & ~there
    return numbers, balance(different, there, absent, present, [image.split for image in images], rng)


def balance(
    things: Sequence[Thing],
    there: np.ndarray,
    absent: np.ndarray,
    preferred: np.ndarray,
    splits: Sequence[str],
    rng: np.random.Generator,
) -> list[list[YesNo]]:
    """For every image the classes that are asked for: in each split each in as many with it as without it.

    Args:
        there, absent: (images, things) bool; where both are False, a class may not be asked for.
        preferred: (images, things) bool; of the images without a class, these come first.
    """
    chosen: list[list[YesNo]] = [[] for _ in splits]
    of_image = np.array(splits)
    for split in dict.fromkeys(splits):
        for column, thing in enumerate(things):
            in_split = of_image == split
            yes, no = (rng.permutation(np.flatnonzero(in_split & of[:, column])) for of in (there, absent))
            no = no[np.argsort(~preferred[no, column], kind="stable")]
            count = min(len(yes), len(no))
            for rows, verdict in ((yes[:count], True), (no[:count], False)):
                for row in rows.tolist():
                    chosen[row].append(YesNo(thing, verdict))
    return chosen
