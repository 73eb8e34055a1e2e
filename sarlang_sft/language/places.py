"""Where boxes lie in their image and to each other, as texts say it. What lies on a border is left unsaid."""

from collections.abc import Iterable, Sequence

from sarlang_sft.boxes import upright
from sarlang_sft.language.wording import CELLS

BORDER = 1e-6  # parts of a side within which a centre is on a border

Extent = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def centre(points: Sequence[float]) -> tuple[float, float]:
    """Of a box, `x y w h` or four corners, in pixels: the mean of its corners."""
    if len(points) == 4:
        return points[0] + points[2] / 2, points[1] + points[3] / 2
    return sum(points[::2]) / 4, sum(points[1::2]) / 4


def region_of(points: Sequence[float], width: int, height: int, border: float = BORDER) -> str | None:
    """`center` if the centre lies in the middle third both ways, else the side it is furthest towards (`REGIONS`).

    None where it lies on the border of two regions.

    Args:
        points: Of a box in pixels.
        width, height: Of the image in pixels.
        border: Parts of a side; with 0 every centre has a region, on a diagonal the top or the bottom.
    """
    x, y = centre(points)
    dx, dy = x / width - 0.5, y / height - 0.5
    far = max(abs(dx), abs(dy))
    if abs(far - 1 / 6) < border:
        return None
    if far < 1 / 6:
        return "center"
    if abs(abs(dx) - abs(dy)) < border:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def most(regions: Sequence[str | None]) -> str | None:
    """What more than half of them are, or None."""
    for region in {*regions}:
        if region is not None and 2 * regions.count(region) > len(regions):
            return region
    return None


def cell_of(points: Sequence[float], width: int, height: int) -> str | None:
    """The part of the image, a third each way (`CELLS`), that holds the centre; None on a border."""
    x, y = centre(points)
    return cell_at(x / width, y / height)


def cell_at(across: float, down: float, border: float = BORDER) -> str | None:
    """[`cell_of`] a point, in parts of the image's width and height; without a `border` it always is in one."""
    column, row = _third(across, border), _third(down, border)
    return None if column is None or row is None else CELLS[3 * row + column]


def _third(part: float, border: float) -> int | None:
    for number, edge in enumerate((1 / 3, 2 / 3)):
        if abs(part - edge) < border:
            return None
        if part < edge:
            return number
    return 2


def extent_of(boxes: Iterable[Sequence[float]]) -> Extent:
    """The smallest upright rectangle around boxes; at least one."""
    lefts, tops, rights, bottoms = zip(*map(upright, boxes), strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def relations_of(one: Extent, other: Extent) -> list[str]:
    """How all of one group of boxes lie to all of another (`RELATIONS`): wholly beyond them, at most one each way."""
    held = []
    if one[3] <= other[1]:
        held.append("above")
    elif one[1] >= other[3]:
        held.append("below")
    if one[2] <= other[0]:
        held.append("left")
    elif one[0] >= other[2]:
        held.append("right")
    return held
