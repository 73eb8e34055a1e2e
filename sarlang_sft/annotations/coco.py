"""COCO: one JSON file with `images`, `annotations` and `categories`."""

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from sarlang_sft.annotations.model import (
    AnnotationOptions,
    MarkedBox,
    MarkedImage,
    Problem,
    Reading,
    SourceFile,
    stated_size,
)
from sarlang_sft.errors import InputError

KEYS = ("images", "annotations", "categories")
_HEAVY = ("segmentation", "keypoints", "counts")  # most of what such files hold, and nothing of it is used
_DOUBTFUL = ("iscrowd", "ignore")
_NOT_SET = (None, False, 0, "", "0")
_BEGIN = 4096  # characters in which one of a file's first keys stands
_FIRST_KEYS = tuple(f'"{key}"' for key in (*KEYS, "info", "licenses"))

Id = int | float | str


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        begin = file.read(_BEGIN).lstrip()
    return begin.startswith("{") and any(key in begin for key in _FIRST_KEYS)


def read_coco(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """The images of COCO files, in their order, with their boxes; none of the options is needed.

    Boxes of four numbers are `x y w h`, those of eight are four corners. Classes are in the order of `categories`.

    Raises:
        InputError: A file is not JSON, or lacks one of the three lists.
    """
    classes: dict[str, None] = {}
    whole = Reading([], classes, [], [])
    for file in tqdm(files, desc="annotations", unit=" files"):
        content = _load(file.path)
        names, notes = _category_names(content["categories"], file.name)
        classes.update(dict.fromkeys(filter(None, names.values())))
        whole.notes.extend(notes)
        images = _images(content["images"], file, whole.problems)
        _add_boxes(content["annotations"], names, images, file, whole.problems)
        whole.images.extend(image for listed in images.values() for image in listed)
    return whole


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=_without_heavy)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no readable JSON ({error}); write or fetch the file again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        raise InputError(
            f"{path}: is no COCO file: it must be an object with the lists {', '.join(KEYS)}; give the file of the "
            "boxes themselves, not of captions, results or images alone"
        )
    return content


def _without_heavy(entry: dict[str, Any]) -> dict[str, Any]:
    for key in _HEAVY:
        entry.pop(key, None)
    return entry


def _id(value: object) -> Id | None:
    return value if isinstance(value, Id) else None


def _category_names(categories: list[Any], file: str) -> tuple[dict[Id, str | None], list[str]]:
    """Class name by category id, in their order; None where an id has several names. And what is odd about them."""
    names: dict[Id, str | None] = {}
    notes = []
    for row, entry in enumerate(categories, 1):
        number, name = (_id(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if number is None or not isinstance(name, str):
            notes.append(f"{file}: category {row} is no object with `id` and `name`; not used")
        elif names.get(number, name) != name:
            notes.append(f"{file}: category id {number!r} has several names; its boxes are not used")
            names[number] = None
        else:
            if name in names.values() and number not in names:
                notes.append(f"{file}: several categories are called {name!r}; they are one class")
            names[number] = name
    return names, notes


def _images(entries: list[Any], file: SourceFile, problems: list[Problem]) -> dict[object, list[MarkedImage]]:
    """Images by id, still without boxes: several under an id that belongs to none of them."""
    images: dict[object, list[MarkedImage]] = {}
    for row, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            problems.append(Problem(file.name, row, "", "image", "entry is no object", False))
            continue
        name, number = entry.get("file_name"), _id(entry.get("id"))
        named = isinstance(name, str) and name != ""
        problem = "image without an id" if number is None else None if named else "image without a file name"
        image = MarkedImage(
            file=file.name,
            row=row,
            name=name if named else "",
            split=file.split,
            boxes=[],
            size=stated_size(entry.get("width"), entry.get("height")),
            problem=problem,
            places=(_beside(file.name, name), name) if named else (),
            folders=file.folders,
        )
        listed = images.setdefault(("no id", row) if number is None else number, [])
        if any(other.name == image.name for other in listed):
            problems.append(Problem(file.name, row, image.name, "image", "image listed twice under one id", True))
        else:
            listed.append(image)
    for listed in images.values():
        if len(listed) > 1:
            listed[:] = [replace(image, problem="image id of several images") for image in listed]
    return images


def _beside(file: str, name: str) -> str:
    """The name of an image in the folder of its annotation file, where several folders hold one of that name."""
    return str(PurePosixPath(file).parent / name.replace("\\", "/"))


def _add_boxes(
    entries: list[Any],
    names: dict[Id, str | None],
    images: dict[object, list[MarkedImage]],
    file: SourceFile,
    problems: list[Problem],
) -> None:
    """Give every box to the first image of its id; what belongs to no image goes to `problems`."""
    for row, entry in enumerate(entries, 1):
        of_image = images.get(_id(entry.get("image_id"))) if isinstance(entry, dict) else None
        if of_image is None:
            reason = "image id of no image" if isinstance(entry, dict) else "entry is no object"
            problems.append(Problem(file.name, row, "", "box", reason, False))
            continue
        label = names.get(_id(entry.get("category_id")))
        points, problem = _points(entry.get("bbox"))
        if label is None:
            problem = "unknown category"
        doubtful = any(entry.get(key) not in _NOT_SET for key in _DOUBTFUL)
        of_image[0].boxes.append(MarkedBox(row, label or "", points, problem, doubtful))


def _points(numbers: object) -> tuple[list[float] | None, str | None]:
    """The points of a `bbox`, and what is wrong with it."""
    if not numbers or not isinstance(numbers, list):
        return None, "no box"
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return None, "box not of numbers"
    if len(numbers) not in (4, 8):
        return None, "box of other than 4 or 8 numbers"
    try:
        return [float(number) for number in numbers], None
    except OverflowError:
        return None, "box not finite"
