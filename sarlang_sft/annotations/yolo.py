"""YOLO: a text file per image, a line per box: class number, then fractions of the image's width and height."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from sarlang_sft.annotations.class_lists import find_class_list
from sarlang_sft.annotations.label_lines import NOT_LABELS, empty_image, first_words, read_lines, read_numbers
from sarlang_sft.annotations.model import AnnotationOptions, MarkedBox, MarkedImage, Reading, SourceFile
from sarlang_sft.splits import SPLIT_NAMES

_UPRIGHT, _CORNERS = 5, 9  # columns
_BEYOND = 0.01  # by which centres and sizes may leave 0 to 1
_CORNER_BEYOND = 1.0  # by which corners may, since rotated boxes reach out of their image; pixels are larger


def looks_like_yolo(path: Path) -> bool:
    """Whether a text file begins with a line of numbers, as YOLO's do."""
    numbers = read_numbers(first_words(path))
    return numbers is not None and len(numbers) >= _UPRIGHT and len(numbers) % 2 == 1


def read_yolo(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """One image per label file: that of the same stem; an empty file is an image without boxes.

    Lines of five columns are centre, width and height; of nine, four corners; of longer outlines the upright box
    around them is taken. Classes are in the order of their list.

    Raises:
        InputError: There is no list of class names; see `find_class_list`.
    """
    content, place = find_class_list(files, options.class_names)
    names = dict(enumerate(content)) if isinstance(content, list) else dict(sorted(content.items()))
    labels = [file for file in files if not _is_other(file.path)]
    images = [_read_file(file, names) for file in tqdm(labels, desc="annotations", unit=" files")]
    return Reading(images, names.values(), [], [f"class names from {place}"])


def _is_other(path: Path) -> bool:
    """Whether a file is a list of classes or, as `train.txt`, of images."""
    stem = path.stem.lower()
    return stem in NOT_LABELS or (stem in SPLIT_NAMES and bool(words := first_words(path)) and not read_numbers(words))


def _read_file(file: SourceFile, names: dict[int, str]) -> MarkedImage:
    image = replace(empty_image(file), in_fractions=True)
    lines = read_lines(file.path)
    if lines is None:
        return replace(image, problem="annotation file unreadable")
    image.boxes.extend(_read_line(row, line.split(), names) for row, line in enumerate(lines, 1) if line.strip())
    return image


def _read_line(row: int, words: list[str], names: dict[int, str]) -> MarkedBox:
    numbers = read_numbers(words)
    if numbers is None:
        return MarkedBox(row, "", None, "line not of numbers")
    number, *fractions = numbers
    label = names.get(number, "")
    if len(numbers) != _UPRIGHT and (len(numbers) < _CORNERS or len(numbers) % 2 == 0):
        return MarkedBox(row, label, None, "wrong columns")
    beyond = _BEYOND if len(numbers) == _UPRIGHT else _CORNER_BEYOND
    if not all(-beyond <= value <= 1 + beyond for value in fractions):
        return MarkedBox(row, label, None, "not in fractions")
    return MarkedBox(row, label, _points(fractions), None if number in names else "unknown class number")


def _points(fractions: list[float]) -> list[float]:
    if len(fractions) == _UPRIGHT - 1:
        x, y, width, height = fractions
        return [x - width / 2, y - height / 2, width, height]
    if len(fractions) == _CORNERS - 1:
        return fractions
    left, top = min(fractions[::2]), min(fractions[1::2])
    return [left, top, max(fractions[::2]) - left, max(fractions[1::2]) - top]
