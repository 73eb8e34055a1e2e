"""From what annotations say to images with clean boxes: nothing is dropped that is not counted with its reason."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from sarlang_sft.annotations.geometry import as_upright, fit_box, in_pixels
from sarlang_sft.annotations.labels import clean_label, label_problem
from sarlang_sft.annotations.model import LabelledImage, MarkedBox, MarkedImage, Problem
from sarlang_sft.annotations.reading import AnnotationSet
from sarlang_sft.boxes import Points, corners
from sarlang_sft.image_files import header_size
from sarlang_sft.image_lookup import ImageFolder, NoImageError
from sarlang_sft.processes import in_processes
from sarlang_sft.records import Box, carve
from sarlang_sft.sarlang import HEADERS_AT_ONCE
from sarlang_sft.sarlang_texts import is_unicode

OF_BAD_IMAGE = "of an image that cannot be used"
DOUBTFUL = "marked as difficult"
TWICE = "annotated twice"
CLIPPED = "clipped to the image"
MERGED = "annotated in several places, which were merged"
IN_TWO_SPLITS = "in two splits"
OTHER_SIZE = "size differs from the annotations"


def label_images(
    annotations: AnnotationSet, image_root: Path, keep_doubtful: bool = False, workers: int | None = None
) -> tuple[list[LabelledImage], list[Problem]]:
    """Find every image, and keep the boxes that texts can be built from.

    Every `MarkedBox` is either in an image or the one of a problem that is not `used`; those of an image that cannot
    be used count as `OF_BAD_IMAGE`. What is said in several places about an image of one split is put together.
    Labels of boxes that were left out are `unsure` in their image, unless the same box is there a second time.

    Args:
        image_root: Holds the images at any depth.
        keep_doubtful: Use boxes that are marked as difficult or as crowds as if they were not.
        workers: Processes that read image headers; None: as many as there are cores.

    Raises:
        InputError: There is no such folder, or a process was killed.

    Returns:
        Images in the order of the annotations, and all problems, those of reading first.
    """
    problems = list(annotations.problems)
    folder = ImageFolder(image_root)
    found: dict[tuple[str, str], list[MarkedImage]] = defaultdict(list)
    for image in tqdm(annotations.images, desc="images", unit=" images"):
        try:
            found[_locate(image, folder), image.split].append(image)
        except NoImageError as error:
            problems.extend(_reject(image, str(error)))
    paths = list(dict.fromkeys(path for path, _ in found))
    read, remedy = partial(header_size, folder.root), "run it again with less beside it"
    workers = 1 if len(paths) <= HEADERS_AT_ONCE else workers
    sizes = dict(zip(paths, in_processes(read, paths, workers, HEADERS_AT_ONCE, "image headers", remedy), strict=True))
    images = []
    splits: dict[str, str] = {}
    for (path, split), group in found.items():
        usable = []
        for image in group:
            if reason := _size_problem(image, sizes[path]):
                problems.extend(_reject(image, reason))
            else:
                usable.append(image)
        if not usable:
            continue
        problems.extend(_of_image(image, MERGED, used=True) for image in usable[1:])
        if splits.setdefault(path, split) != split:
            problems.append(_of_image(usable[0], IN_TWO_SPLITS, used=True))
        labelled = _clean(path, sizes[path], usable, keep_doubtful, problems)
        lost = {_askable(box.label) for image in group if image not in usable for box in image.boxes}
        images.append(replace(labelled, unsure=labelled.unsure | lost) if lost else labelled)
    return images, problems


def carve_images(images: list[LabelledImage], fractions: Mapping[str, float]) -> list[LabelledImage]:
    """Images with a part of `train` moved to each split that none of them is in; see [`carve`].

    Args:
        fractions: Of the training images, by split; carved one after the other.
    """
    stated = {image.split for image in images}
    unstated = {split: fraction for split, fraction in fractions.items() if split not in stated}
    splits = carve([image.split for image in images], [[image.image] for image in images], unstated)
    return [replace(image, split=split) for image, split in zip(images, splits, strict=True)]


def _locate(image: MarkedImage, folder: ImageFolder) -> str:
    """Its path relative to the image root; raises NoImageError with the reason if it cannot be used."""
    if image.problem:
        raise NoImageError(image.problem)
    reason = ""
    for name in image.places or (image.name,):
        try:
            path = PurePosixPath(folder.locate(name, image.folders)).as_posix()
        except NoImageError as error:
            reason = str(error)
            continue
        if not is_unicode(path):
            raise NoImageError("image name is not valid Unicode")
        return path
    raise NoImageError(reason)


def _size_problem(image: MarkedImage, size: tuple[int, int] | str) -> str | None:
    if isinstance(size, str):
        return size
    return OTHER_SIZE if image.size not in (None, size) else None


def _of_image(image: MarkedImage, reason: str, used: bool = False) -> Problem:
    return Problem(image.file, image.row, image.name, "image", reason, used)


def _of_box(image: MarkedImage, box: MarkedBox, reason: str, used: bool = False) -> Problem:
    return Problem(image.file, box.row, image.name, "box", reason, used)


def _reject(image: MarkedImage, reason: str) -> list[Problem]:
    """The problems of an image that cannot be used, and of its boxes."""
    return [_of_image(image, reason), *(_of_box(image, box, OF_BAD_IMAGE) for box in image.boxes)]


def _askable(label: str) -> str:
    """A label as texts have it; "" where none can."""
    label = clean_label(label)
    return "" if label_problem(label) else label


def _clean(
    path: str, size: tuple[int, int], group: list[MarkedImage], keep_doubtful: bool, problems: list[Problem]
) -> LabelledImage:
    """One image from all that is said about it in one split; what is wrong with its boxes goes to `problems`."""
    boxes: list[Box] = []
    unsure = {_askable(label) for image in group for label in image.unsure}
    seen: set[tuple[object, ...]] = set()
    for image in group:
        for box in image.boxes:
            label = clean_label(box.label)
            reason = box.problem or label_problem(label) or (DOUBTFUL if box.doubtful and not keep_doubtful else None)
            points = [] if reason else _stored_points(box, image, size)
            fitting = reason or fit_box(points, *size)
            if isinstance(fitting, str):
                problems.append(_of_box(image, box, fitting))
                unsure.add(_askable(label))
                continue
            points, clipped = fitting
            key = _same_object(label, points)
            if key in seen:
                problems.append(_of_box(image, box, TWICE))
                continue
            seen.add(key)
            if clipped:
                problems.append(_of_box(image, box, CLIPPED, used=True))
            boxes.append(Box(label, points))
    resolution_m = next((image.resolution_m for image in group if image.resolution_m is not None), None)
    return LabelledImage(path, *size, group[0].split, boxes, frozenset(unsure), resolution_m)


def _same_object(label: str, points: Points) -> tuple[object, ...]:
    """What two annotations of one object share, however the class is spelt and from whichever corner it is drawn."""
    return " ".join(re.split(r"[\s_-]+", label.casefold())), *sorted(
        (round(x, 3), round(y, 3)) for x, y in corners(points)
    )


def _stored_points(box: MarkedBox, image: MarkedImage, size: tuple[int, int]) -> Points:
    """In pixels, and upright where the corners are."""
    return as_upright(in_pixels(box.points, *size) if image.in_fractions else box.points)
