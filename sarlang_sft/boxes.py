"""Boxes in texts: `<box:i>` written in the words of a model family, and read back from its answers.

Texts that the project builds name the i-th box of their record as `<box:i>`. A model speaks of the picture that it
sees, in its family's own units; `Frame` knows where a stored pixel lies in that picture.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

PLACEHOLDER = re.compile(r"<box:(\d+)>")
_NUMBER = r"-?\d+(?:\.\d+)?"
_LIST = re.compile(rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*\]")
# Corners of one box are joined by a comma alone; decoding drops the marks that also part one box from the next.
_PAIRS = re.compile(rf"\({_NUMBER},{_NUMBER}\)(?:,\({_NUMBER},{_NUMBER}\))+")

TOLERANCE = 1.0  # pixels that a stored box may reach beyond its image: boxes are rounded

Points = list[float]
"""Of a box in pixels of the stored image: `x y w h`, or the 8 numbers of its four corners."""


@dataclass(frozen=True)
class Frame:
    """Where stored pixels lie in the picture that the model sees: `scale * x + shift`, in pixels of that picture.

    Attributes:
        scale: Across and down.
        shift: Across and down.
        size: Width and height of the picture.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: tuple[float, float]

    @classmethod
    def of(cls, width: int, height: int) -> "Frame":
        """The stored image itself."""
        return cls((1.0, 1.0), (0.0, 0.0), (width, height))

    def resized(self, width: float, height: float) -> "Frame":
        """The picture stretched to a new size."""
        across, down = width / self.size[0], height / self.size[1]
        return Frame(
            (self.scale[0] * across, self.scale[1] * down),
            (self.shift[0] * across, self.shift[1] * down),
            (width, height),
        )

    def cropped(self, left: float, top: float, width: float, height: float) -> "Frame":
        """A part of the picture; negative `left` and `top` pad it."""
        return replace(self, shift=(self.shift[0] - left, self.shift[1] - top), size=(width, height))

    def centred(self, width: float, height: float) -> "Frame":
        """The central part of the picture, padded where it is smaller."""
        return self.cropped(int((self.size[0] - width) / 2), int((self.size[1] - height) / 2), width, height)

    def then(self, later: "Frame") -> "Frame":
        """This picture seen through another frame, whose stored image it is."""
        shift = later.inside(*self.shift)
        scale = (self.scale[0] * later.scale[0], self.scale[1] * later.scale[1])
        return Frame(scale, shift, later.size)

    def inside(self, x: float, y: float) -> tuple[float, float]:
        """A stored point in the picture."""
        return self.scale[0] * x + self.shift[0], self.scale[1] * y + self.shift[1]

    def outside(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture in the stored image."""
        return (x - self.shift[0]) / self.scale[0], (y - self.shift[1]) / self.scale[1]


@dataclass(frozen=True)
class BoxConvention:
    """How a family writes boxes.

    Attributes:
        units: The picture's width and height in its numbers; None: they are pixels of the picture.
        digits: Of its numbers, behind the point.
        marks: Tokens around a box and around four corners, with points in parentheses; None: a list in brackets.
    """

    units: int | None
    digits: int
    marks: tuple[tuple[str, str], tuple[str, str]] | None = None

    def write(self, points: Sequence[float], frame: Frame) -> str:
        """A stored box in the family's words: two opposite corners, or all four of a rotated one.

        What lies outside the picture is cut off.

        Raises:
            ValueError: Nothing of the box is inside the picture.
        """
        seen = [frame.inside(x, y) for x, y in _opposite_corners(points)]
        columns, rows = zip(*seen, strict=True)
        if max(columns) <= 0 or max(rows) <= 0 or min(columns) >= frame.size[0] or min(rows) >= frame.size[1]:
            raise ValueError("box outside the picture")
        numbers = [
            f"{min(max(value, 0), side) * (self.units or side) / side:.{self.digits}f}"
            for corner in seen
            for value, side in zip(corner, frame.size, strict=True)
        ]
        if self.marks is None:
            return f"[{', '.join(numbers)}]"
        begin, end = self.marks[len(numbers) > 4]
        return begin + ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True)) + end

    def read(self, text: str, frame: Frame) -> list[Points]:
        """All boxes of an answer, as stored points; lists of other than 4 or 8 numbers are no boxes."""
        found = (_PAIRS if self.marks else _LIST).findall(text)
        boxes = []
        for numbers in ([float(number) for number in re.findall(_NUMBER, part)] for part in found):
            if len(numbers) not in (4, 8):
                continue
            across, down = (side / (self.units or side) for side in frame.size)
            stored = [frame.outside(x * across, y * down) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            if len(stored) == 4:
                boxes.append([value for point in stored for value in point])
                continue
            (left, right), (top, bottom) = (sorted(values) for values in zip(*stored, strict=True))
            boxes.append([left, top, right - left, bottom - top])
        return boxes


def corners(points: Sequence[float]) -> list[tuple[float, float]]:
    """The four corners of a stored box in order around it."""
    if len(points) == 4:
        x, y, width, height = points
        return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return list(zip(points[::2], points[1::2], strict=True))


def upright(points: Sequence[float]) -> list[float]:
    """`left top right bottom` of the smallest upright box around a stored one, in pixels."""
    columns, rows = zip(*corners(points), strict=True)
    return [min(columns), min(rows), max(columns), max(rows)]


def _opposite_corners(points: Sequence[float]) -> list[tuple[float, float]]:
    """Two of an upright box, all four of a rotated one."""
    return corners(points)[::2] if len(points) == 4 else corners(points)


def box_problem(points: list[float] | None, width: int, height: int) -> str | None:
    """The kind of finding about a box, `x y w h` or four corners, in an image of this size in pixels, or None."""
    if points is None or len(points) not in (4, 8) or not all(p is not None and math.isfinite(p) for p in points):
        return "unusable_box"
    columns, rows = zip(*corners(points), strict=True)
    area = abs(sum(columns[i - 1] * rows[i] - columns[i] * rows[i - 1] for i in range(4))) / 2  # the shoelace formula
    turned_over = len(points) == 4 and min(points[2:]) <= 0
    outside = max(columns) <= 0 or max(rows) <= 0 or min(columns) >= width or min(rows) >= height
    if turned_over or area <= 0 or outside:
        return "unusable_box"
    beyond = max(-min(columns), -min(rows), max(columns) - width, max(rows) - height)
    return "box_outside" if beyond > TOLERANCE else None


def write_boxes(text: str, boxes: Sequence[Sequence[float]], convention: BoxConvention, frame: Frame) -> str:
    """A text with every `<box:i>` in the family's words.

    Raises:
        ValueError: There is no i-th box, or nothing of it is inside the picture.
    """

    def written(match: re.Match[str]) -> str:
        number = int(match[1])
        if number >= len(boxes):
            raise ValueError("no box of this number")
        return convention.write(boxes[number], frame)

    return PLACEHOLDER.sub(written, text)


PIXELS = BoxConvention(units=None, digits=0)
THOUSANDTHS = BoxConvention(units=1000, digits=0)
FRACTIONS = BoxConvention(units=1, digits=2)
QWEN2_VL = BoxConvention(
    units=1000,
    digits=0,
    marks=(("<|box_start|>", "<|box_end|>"), ("<|quad_start|>", "<|quad_end|>")),
)
