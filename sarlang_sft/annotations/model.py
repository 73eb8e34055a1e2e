"""What annotation files say, as they say it, and what is left of it after cleaning."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sarlang_sft.records import Box


@dataclass(frozen=True, slots=True)
class MarkedBox:
    """One annotation as its file has it.

    Attributes:
        row: Its number in the file, from 1. COCO: its place in `annotations`; VOC: the object; YOLO and DOTA: the
            line; masks: the component or instance.
        label: Class name as annotated; "" where it has none.
        points: `x y w h`, or 8 numbers, four corners in order around the box; in pixels of the stored image, or in
            fractions of its sides, see `MarkedImage.in_fractions`. None where they cannot be read.
        problem: Why it cannot be used, as far as its reader can tell.
        doubtful: Marked as difficult (VOC, DOTA), or as a crowd or to be ignored (COCO).
    """

    row: int
    label: str
    points: list[float] | None
    problem: str | None = None
    doubtful: bool = False


@dataclass(frozen=True)
class MarkedImage:
    """An image with its annotations; without any it is background.

    Attributes:
        file: Its annotation file, see `SourceFile.name`.
        row: COCO: its place in `images`, from 1; else 1.
        name: As the annotations call the image.
        size: Width and height in pixels, if the annotations state them.
        resolution_m: Metres per pixel, if they state it (DOTA's `gsd`).
        in_fractions: Points are fractions of width and height (YOLO).
        problem: Why the whole image cannot be used.
        places: Names to look for the image by, one after the other; none: `name`.
        folders: Of its split, see `ImageFolder.locate`.
        unsure: Labels of which one box may hold several objects.
    """

    file: str
    row: int
    name: str
    split: str
    boxes: list[MarkedBox]
    size: tuple[int, int] | None = None
    resolution_m: float | None = None
    in_fractions: bool = False
    problem: str | None = None
    places: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    unsure: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelledImage:
    """An image with clean boxes.

    Attributes:
        image: Path relative to the image root.
        width: In pixels, from the file, as `height`.
        boxes: In pixels; upright ones lie in the image, rotated ones with their centre.
        unsure: Labels of which not every object has a box of its own in `boxes`; "" among them: there is an object of
            unknown class.
        resolution_m: Metres per pixel, if the annotations state it.
    """

    image: str
    width: int
    height: int
    split: str
    boxes: list[Box]
    unsure: frozenset[str]
    resolution_m: float | None


class Problem(NamedTuple):
    """What is wrong with one image or box of an annotation file.

    `what` is `image` or `box`, `row` its number as `MarkedImage.row` and `MarkedBox.row` have it, and `image` the name
    by which the annotations call the image. What is `used` was kept nevertheless, mended or merged.
    """

    file: str
    row: int
    image: str
    what: str
    reason: str
    used: bool


@dataclass(frozen=True)
class SourceFile:
    """An annotation file that was found.

    Attributes:
        name: Relative to the folder that all given sources lie in.
        folders: The splits that its name and the command line state; see `ImageFolder.locate`.
    """

    path: Path
    name: str
    split: str
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnnotationOptions:
    """How annotations are to be understood where they do not say it themselves.

    Attributes:
        class_names: File with the names of class numbers; None: it is looked for beside the annotations.
        voc_corners: `one_based`: corners count from 1 and belong to the box; `zero_based`: they are positions from 0;
            `auto`: the latter if any corner of the set is 0.
        min_area: Pixels that a part of a mask needs.
        count_components: Connected parts of a class mask are one object each; otherwise touching objects may be one.
        workers: Processes that decode masks; None: as many as there are cores.
    """

    class_names: str | None = None
    voc_corners: str = "auto"
    min_area: int = 9
    count_components: bool = False
    workers: int | None = None


class Reading(NamedTuple):
    """What a reader makes of its files: `classes` in the order of their list, `notes` on what it had to decide.

    `problems` are of entries that belong to no image.
    """

    images: list[MarkedImage]
    classes: Iterable[str]
    problems: list[Problem]
    notes: list[str]


Reader = Callable[[list[SourceFile], AnnotationOptions], Reading]


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """A size as annotations state it; None if these are not two whole numbers above 0, as where it was unknown."""
    try:
        numbers = float(width), float(height)
    except (TypeError, ValueError, OverflowError):
        return None
    whole = all(number > 0 and number.is_integer() for number in numbers)
    return (int(numbers[0]), int(numbers[1])) if whole else None
