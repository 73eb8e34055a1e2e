"""Mask pictures: every pixel holds the number of its class, or of its object."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from sarlang_sft.annotations.class_lists import ClassList, find_class_list
from sarlang_sft.annotations.label_lines import empty_image
from sarlang_sft.annotations.model import AnnotationOptions, MarkedBox, MarkedImage, Reading, SourceFile
from sarlang_sft.image_files import LARGEST_PIXELS, TIFF_SUFFIXES, open_picture, open_tiff
from sarlang_sft.processes import in_processes

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # without those that change values
BACKGROUND = ("background", "_background_", "__background__")
PER_CLASS = 1000  # numbers of objects that a class has, as in Cityscapes
_TOUCHING = np.ones((3, 3), int)  # corners touch as well as sides
_AT_ONCE = 16
_TOO_SMALL = "part under the smallest area"
_NO_CLASS = "value without a class"


class _BadMaskError(ValueError):
    """Why a picture is no mask."""


BoxesOf = Callable[[np.ndarray, dict[int, str], int], list[MarkedBox]]
"""Boxes of an (H, W) mask of whole numbers, by the names of classes and the smallest area in pixels."""


def read_class_masks(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """One image per mask, that of the same stem; every connected part of a class is a box.

    Touching objects are one part, so that the labels are `unsure` unless `count_components` says otherwise. Lines of
    the list of classes are the values from 1, or from 0 if the first is `background`; see [`class_values`].

    Raises:
        InputError: There is no list of class names, see `find_class_list`; or a process was killed.
    """
    return _read_masks(_class_boxes, files, options, several=not options.count_components)


def read_instance_masks(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """One image per mask, that of the same stem; every value is one object and its box.

    A value is its class times 1000 plus a number, or with a single class in the list any number but 0. See
    [`read_class_masks`] for the list and errors.
    """
    return _read_masks(_instance_boxes, files, options, several=False)


def class_values(content: ClassList) -> dict[int, str]:
    """Class name by value, in order of values; 0 is background unless it is named.

    A value called `background` holds no objects, as 0 does; that leaves out what a set does not tell, too.
    """
    if isinstance(content, list):
        content = dict(enumerate(content, 0 if content[0].lower() in BACKGROUND else 1))
    return {0: BACKGROUND[0], **dict(sorted(content.items()))}


def _read_masks(boxes_of: BoxesOf, files: list[SourceFile], options: AnnotationOptions, several: bool) -> Reading:
    content, place = find_class_list(files, options.class_names)
    names = class_values(content)
    read = partial(_read_mask, boxes_of, names, options.min_area, several)
    remedy = "give fewer --workers"
    images = list(in_processes(read, files, options.workers, _AT_ONCE, "masks", remedy))
    classes = [name for name in names.values() if not _is_background(name)]
    return Reading(images, classes, [], [f"class names from {place}"])


def _is_background(name: str) -> bool:
    return name.lower() in BACKGROUND


def _read_mask(
    boxes_of: BoxesOf, names: dict[int, str], min_area: int, several: bool, file: SourceFile
) -> MarkedImage:
    try:
        mask = decode_mask(file.path)
    except _BadMaskError as error:
        return replace(empty_image(file), problem=str(error))
    boxes = boxes_of(mask, names, min_area)
    height, width = mask.shape
    unsure = frozenset(box.label for box in boxes if several and box.label)
    return replace(empty_image(file), boxes=boxes, size=(width, height), unsure=unsure)


def decode_mask(path: Path) -> np.ndarray:
    """A mask as (H, W) whole numbers; of a palette picture the places in the palette.

    Raises:
        ValueError: It is unreadable or too large, or has several bands or other numbers; the message is the reason.
    """
    try:
        mask = _band_of_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _band_of_picture(path)
    except _BadMaskError:
        raise
    except Exception as error:  # decoders meet broken files with errors of every kind
        raise _BadMaskError("mask unreadable") from error
    if mask.dtype.kind not in "biu":
        raise _BadMaskError("mask not of whole numbers")
    return mask.astype(np.uint8) if mask.dtype.kind == "b" else mask


def _band_of_tiff(path: Path) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"), open_tiff(path) as file:  # of files without a reference
        _check_mask(file.count, file.width, file.height)
        return file.read(1)


def _band_of_picture(path: Path) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"), open_picture(path) as image:  # of large ones
        _check_mask(len(image.getbands()), *image.size)
        return np.asarray(image)


def _check_mask(bands: int, width: int, height: int) -> None:
    if bands != 1:
        raise _BadMaskError("mask of several bands")
    if width * height > LARGEST_PIXELS:
        raise _BadMaskError("mask too large")


def _class_boxes(mask: np.ndarray, names: dict[int, str], min_area: int) -> list[MarkedBox]:
    boxes: list[MarkedBox] = []
    for value in np.unique(mask).tolist():
        label = names.get(value, "")
        if _is_background(label):
            continue
        if value not in names:
            boxes.append(MarkedBox(len(boxes) + 1, "", None, _NO_CLASS))
            continue
        parts, _ = ndimage.label(mask == value, _TOUCHING)
        for place, area in zip(ndimage.find_objects(parts), np.bincount(parts.ravel())[1:], strict=True):
            problem = _TOO_SMALL if area < min_area else None
            boxes.append(MarkedBox(len(boxes) + 1, label, _around(place), problem))
    return boxes


def _instance_boxes(mask: np.ndarray, names: dict[int, str], min_area: int) -> list[MarkedBox]:
    classes = [name for name in names.values() if not _is_background(name)]
    values, numbers, areas = np.unique(mask, return_inverse=True, return_counts=True)
    places = ndimage.find_objects(numbers.reshape(mask.shape) + 1)
    boxes: list[MarkedBox] = []
    for value, area, place in zip(values.tolist(), areas, places, strict=True):
        number = value if value < PER_CLASS else value // PER_CLASS
        label = classes[0] if len(classes) == 1 and value else names.get(number, "")
        if _is_background(label):
            continue
        problem = None
        if not label:
            problem = _NO_CLASS
        elif len(classes) > 1 and value < PER_CLASS:  # Cityscapes: objects of the class that could not be told apart
            problem = "value without a number of the object"
        elif area < min_area:
            problem = _TOO_SMALL
        boxes.append(MarkedBox(len(boxes) + 1, label, _around(place), problem))
    return boxes


def _around(place: tuple[slice, slice]) -> list[float]:
    rows, columns = place
    return [
        float(columns.start),
        float(rows.start),
        float(columns.stop - columns.start),
        float(rows.stop - rows.start),
    ]
