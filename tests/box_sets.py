"""Random boxes of every kind that real sets have, for tests of texts from boxes."""

import math
from random import Random

from sarlang_sft.records import Box

CLASSES = ("ship", "aircraft", "car", "tank", "bridge", "harbor")
KINDS = ("one", "few", "crowded", "overlapping", "border", "rotated", "degenerate", "ties", "empty")


def random_set(rng: Random, kind: str) -> tuple[list[Box], int, int]:
    """Clean boxes, width and height of an image.

    Args:
        kind: One of `KINDS`. `ties`: centres on thirds, diagonals and the middle, groups of equal size.
    """
    width, height = (rng.randint(30, 700) for _ in "wh")
    labels = rng.sample(CLASSES, rng.randint(1, len(CLASSES)))
    count = {"one": 1, "empty": 0, "crowded": rng.randint(30, 80)}.get(kind, rng.randint(2, 8))
    return [Box(rng.choice(labels), _points(rng, kind, width, height)) for _ in range(count)], width, height


def _points(rng: Random, kind: str, width: int, height: int) -> list[float]:
    if kind == "rotated":
        return _rotated(rng, width, height)
    if kind == "degenerate":
        thin, long = rng.uniform(1, 1.2), rng.uniform(1, 20)
        w, h = (thin, min(long, height)) if rng.random() < 0.5 else (min(long, width), thin)
        return [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
    if kind == "overlapping":
        x, y = width / 2 + rng.uniform(-3, 3) - 8, height / 2 + rng.uniform(-3, 3) - 8
        return [max(x, 0), max(y, 0), rng.uniform(6, 8), rng.uniform(6, 8)]
    if kind == "ties":
        x, y = (
            rng.choice((1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)) * width,
            rng.choice((1 / 6, 1 / 3, 1 / 2, 2 / 3)) * height,
        )
        return [x - 4, y - 4, 8.0, 8.0]
    w, h = (float(round(rng.uniform(2, side / 2), rng.choice((0, 1, 6)))) for side in (width, height))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    if kind == "border":
        x, y = rng.choice((0.0, width - w, x)), rng.choice((0.0, height - h, y))
    return [x, y, w, h]


def _rotated(rng: Random, width: int, height: int) -> list[float]:
    """Corners may stick out of the image, the centre does not."""
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, math.pi)
    long, short = rng.uniform(4, width / 3), rng.uniform(2, height / 4)
    along = (math.cos(angle) * long / 2, math.sin(angle) * long / 2)
    across = (-math.sin(angle) * short / 2, math.cos(angle) * short / 2)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [
        centre + one * along[axis] + other * across[axis]
        for one, other in signs
        for axis, centre in ((0, x), (1, y))
    ]  # fmt: skip
