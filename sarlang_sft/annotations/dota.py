"""DOTA: a text file per image, a line per box: four corners in pixels, class name, and whether it is difficult."""

import math
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from sarlang_sft.annotations.label_lines import NOT_LABELS, empty_image, first_words, read_lines, read_numbers
from sarlang_sft.annotations.model import AnnotationOptions, MarkedBox, MarkedImage, Reading, SourceFile

_HEADERS = ("imagesource:", "gsd:")
_NUMBERS = 8
_DIFFICULT = ("0", "1", "2")


def looks_like_dota(path: Path) -> bool:
    """Whether a text file begins with a header of DOTA's, or with eight numbers and a name."""
    words = first_words(path)
    if words and words[0].lower().startswith(_HEADERS):
        return True
    corners, name = words[:_NUMBERS], words[_NUMBERS : _NUMBERS + 1]
    return bool(name) and read_numbers(corners) is not None and read_numbers(name) is None


def read_dota(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """One image per label file: that of the same stem; none of the options is needed. Classes are sorted."""
    labels = [file for file in files if file.path.stem.lower() not in NOT_LABELS]
    images = [_read_file(file) for file in tqdm(labels, desc="annotations", unit=" files")]
    return Reading(images, sorted({box.label for image in images for box in image.boxes}), [], [])


def _read_file(file: SourceFile) -> MarkedImage:
    image = empty_image(file)
    lines = read_lines(file.path)
    if lines is None:
        return replace(image, problem="annotation file unreadable")
    resolution_m = None
    for row, line in enumerate(lines, 1):
        header, _, value = line.strip().partition(":")
        if f"{header.lower()}:" not in _HEADERS:
            image.boxes.extend([_read_line(row, line.split())] if line.strip() else [])
        elif header.lower() == "gsd":
            resolution_m = _resolution(value)
    return replace(image, resolution_m=resolution_m)


def _resolution(text: str) -> float | None:
    """Metres per pixel; None where it is `null` or nothing that a pixel can measure."""
    numbers = read_numbers([text])
    return numbers[0] if numbers and math.isfinite(numbers[0]) and numbers[0] > 0 else None


def _read_line(row: int, words: list[str]) -> MarkedBox:
    points, names = read_numbers(words[:_NUMBERS]), words[_NUMBERS:]
    difficult = names.pop() if len(names) > 1 and names[-1] in _DIFFICULT else "0"
    problem = None
    if not names:
        points, problem = None, "wrong columns"
    elif points is None:
        problem = "line without eight numbers"
    return MarkedBox(row, " ".join(names), points, problem, difficult != "0")
