"""Boxes as annotated, made to fit their image."""

import math

from sarlang_sft.boxes import TOLERANCE, Points, corners

SMALLEST = 1.0  # pixels: of the sides of an upright box, and square pixels of a rotated one
_SLANT = 1e-3  # pixels by which the corners of an upright rectangle may differ, as rounded fractions make them
_DIGITS = 6  # kept of pixels that come from fractions


def in_pixels(fractions: Points, width: int, height: int) -> Points:
    """Points in fractions of an image's sides in its pixels."""
    return [round(value * (height if place % 2 else width), _DIGITS) for place, value in enumerate(fractions)]


def as_upright(points: Points) -> Points:
    """Four corners of an upright rectangle, in any order around it, as `x y w h`; other points as they are."""
    if len(points) == 4 or not all(map(math.isfinite, points)):
        return points
    columns, rows = points[::2], points[1::2]
    left, right, top, bottom = min(columns), max(columns), min(rows), max(rows)
    ways = [(columns, rows), (columns[1:] + columns[:1], rows[1:] + rows[:1])]  # from one corner and from the next
    if any(
        max(abs(x[0] - x[1]), abs(x[2] - x[3]), abs(y[1] - y[2]), abs(y[3] - y[0])) <= _SLANT
        and min(abs(x[1] - x[2]), abs(y[0] - y[1])) > _SLANT
        for x, y in ways
    ):
        return [left, top, right - left, bottom - top]
    return points


def fit_box(points: Points, width: int, height: int) -> tuple[Points, bool] | str:
    """A box that fits an image of this size in pixels, and whether more than a rounding was cut off; or why none does.

    Upright boxes are cut off at the image's borders. Rotated ones keep their corners, which may lie outside by no more
    than the image's longer side.
    """
    if not all(map(math.isfinite, points)):
        return "box not finite"
    return _fit_upright(points, width, height) if len(points) == 4 else _fit_rotated(points, width, height)


def _fit_upright(points: Points, width: int, height: int) -> tuple[Points, bool] | str:
    x, y, across, down = points
    if across <= 0 or down <= 0:
        return "box without area"
    if x >= width or y >= height or x + across <= 0 or y + down <= 0:
        return "box outside the image"
    beyond = max(-x, -y, x + across - width, y + down - height)
    if beyond > 0:
        left, top = max(x, 0.0), max(y, 0.0)
        across, down = min(x + across, float(width)) - left, min(y + down, float(height)) - top
        points = [left, top, across, down]
    if across < SMALLEST or down < SMALLEST:
        return "box under one pixel in the image"
    return points, beyond > TOLERANCE


def _fit_rotated(points: Points, width: int, height: int) -> tuple[Points, bool] | str:
    places = corners(points)
    x, y = (math.fsum(value / 4 for value in values) for values in zip(*places, strict=True))
    if not (0 <= x <= width and 0 <= y <= height):
        return "centre of the box outside the image"
    reach = max(width, height)
    if not all(-reach <= x <= width + reach and -reach <= y <= height + reach for x, y in places):
        return "corner far outside the image"
    area = abs(sum(_turn((0.0, 0.0), places[place - 1], places[place]) for place in range(4))) / 2
    if area <= 0:
        return "box without area"
    if _cross(*places) or _cross(*places[1:], places[0]):
        return "box whose sides cross"
    return (points, False) if area >= SMALLEST else "box under one pixel in the image"


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Above 0 where the way from `a` over `b` to `c` turns one way, below 0 where the other."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    """Whether the sides `a b` and `c d` meet."""
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0
