"""Where in a large image a text is true: similarities of sliding windows, averaged, stretched and blurred.

The procedure is that of Yuan et al., "Learning to Evaluate Performance of Multi-modal Semantic Localization", arXiv
2209.06515; numbers that its abstract and tables leave open are those of the authors' program (github.com/xiaoyuan1996/
SemanticLocalizationMetrics, predict/generate_selo.py). Two things differ from that program: neither crops nor maps are
stored as JPEG in between, and of images smaller than a window all is one window instead of an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from sarlang_sft.errors import InputError

PUBLISHED_SIDES = (256, 512, 768)
PUBLISHED_BLUR = 251
LEVELS = 255  # grey levels above 0: the published map is an 8-bit image

Similarity = Callable[[Sequence[np.ndarray]], np.ndarray]  # crops, (h, w, 3) each, to (crops, queries)


class Window(NamedTuple):
    """A part of an image in pixels, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class WindowArguments:
    """Which parts of an image are compared with a text, and how their map is smoothed."""

    sides: list[int] = field(
        default_factory=lambda: list(PUBLISHED_SIDES), metadata={"help": "Sides of the windows in pixels."}
    )
    step: float | None = field(
        default=None,
        metadata={
            "help": "From window to window, as a share of the side, such as 0.5; default: as published, windows side "
            "by side, and once more half a side further down and right."
        },
    )
    blur: int = field(
        default=PUBLISHED_BLUR, metadata={"help": "Side of the median filter in pixels, odd; 1: no blur."}
    )

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 2:
            raise InputError(f"sides {self.sides}: windows need at least 2 pixels")
        if self.step is not None and not 0 < self.step <= 1:
            raise InputError(f"step {self.step}: must be above 0 and at most 1, else pixels lie in no window")
        if self.blur < 1 or self.blur % 2 == 0:
            raise InputError(f"blur {self.blur}: must be odd and at least 1")

    @property
    def published(self) -> bool:
        """Whether maps are made as published."""
        return (tuple(self.sides), self.step, self.blur) == (PUBLISHED_SIDES, None, PUBLISHED_BLUR)

    def describe(self) -> str:
        """In a few words."""
        step = "published grids" if self.step is None else f"step {self.step:g}"
        return f"windows {'/'.join(map(str, self.sides))}, {step}, median {self.blur}"


def windows_of(height: int, width: int, arguments: WindowArguments) -> list[Window]:
    """The windows of an image, each once; those that would leave it lie at its edge, and cover every pixel."""
    found: dict[Window, None] = {}
    for side in arguments.sides:
        tall, wide = min(side, height), min(side, width)
        if arguments.step is None:
            grids = [(0, side), (side // 2, side)]
        else:
            grids = [(0, max(1, round(arguments.step * side)))]
        for start, step in grids:
            tops = _starts(start, step, tall, height)
            for top, left in product(tops, _starts(start, step, wide, width)):
                found[Window(top, left, top + tall, left + wide)] = None
    return list(found)


def _starts(start: int, step: int, side: int, length: int) -> list[int]:
    return list(dict.fromkeys(min(place, length - side) for place in range(start, max(length, start + 1), step)))


def window_similarities(
    image: np.ndarray, windows: Sequence[Window], similarity: Similarity, batch_size: int
) -> np.ndarray:
    """How like the queries each window is: (windows, queries) float64.

    Args:
        image: (H, W, 3), read once; crops are views of it.
        similarity: Of a batch of crops to all queries.
    """
    parts = []
    for start in range(0, len(windows), batch_size):
        some = windows[start : start + batch_size]
        parts.append(similarity([image[one.top : one.bottom, one.left : one.right] for one in some]))
    return np.concatenate(parts).astype(np.float64)


def heat_map(
    height: int, width: int, windows: Sequence[Window], similarities: np.ndarray, blur: int = PUBLISHED_BLUR
) -> np.ndarray:
    """The map of one query, (H, W) float32 in 0-1, in steps of 1/255 as the published 8-bit images.

    A pixel has the mean similarity of the windows that cover it; the map is stretched to 0-1 and then blurred by a
    median, in the published order, so that its largest value may end below 1. A map that is the same everywhere
    says nothing, and is 0 everywhere.

    Between two neighbouring edges of windows the mean does not change, so all is reckoned on those cells.

    Args:
        windows: Together they cover the image.
        similarities: (windows,).
        blur: Side of the median filter, odd.
    """
    rows = np.unique([0, height, *(edge for one in windows for edge in (one.top, one.bottom))])
    columns = np.unique([0, width, *(edge for one in windows for edge in (one.left, one.right))])
    sums = np.zeros((len(rows) - 1, len(columns) - 1))
    counts = np.zeros_like(sums)
    for one, value in zip(windows, similarities, strict=True):
        top, bottom = np.searchsorted(rows, (one.top, one.bottom))
        left, right = np.searchsorted(columns, (one.left, one.right))
        sums[top:bottom, left:right] += value
        counts[top:bottom, left:right] += 1
    means = sums / counts
    reach = means.max() - means.min()
    if reach <= np.finfo(np.float32).eps * np.abs(means).max():  # equal but for rounding
        return np.zeros((height, width), np.float32)
    levels = np.floor(LEVELS * ((means - means.min()) / reach)).astype(np.uint8)
    return median_of_cells(levels, rows, columns, blur).astype(np.float32) / LEVELS


def median_of_cells(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, side: int) -> np.ndarray:
    """The median filter of a picture that is made of cells of one value each; exact, edges repeated outwards.

    As `scipy.ndimage.median_filter(picture, side, mode="nearest")`, whose time grows with the area of the filter:
    hours for the published 251 pixels. Here a pixel costs as many additions as cells are near it, about nine.

    Args:
        values: (R, C), of any type that sorts.
        rows: (R + 1,) edges of the cells, ascending from 0 to the height H.
        columns: (C + 1,), to the width W.
        side: Of the filter in pixels, odd.

    Returns:
        (H, W) of the type of `values`.
    """
    picture = np.empty((rows[-1], columns[-1]), values.dtype)
    down = [_overlaps(rows, begin, end, side) for begin, end in pairwise(rows)]
    across = [_overlaps(columns, begin, end, side) for begin, end in pairwise(columns)]
    for row, (near_rows, tall) in enumerate(down):
        for column, (near_columns, wide) in enumerate(across):
            near = values[near_rows, near_columns]
            order = np.argsort(near, axis=None, kind="stable")
            above, beside = np.divmod(order, near.shape[1])
            block = picture[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            seen = np.zeros(block.shape, np.int32)
            open_yet = np.ones(block.shape, bool)
            for a, b in zip(above, beside, strict=True):
                seen += tall[:, a, None] * wide[None, :, b]
                reached = open_yet & (2 * seen > side * side)
                block[reached] = near[a, b]
                open_yet &= ~reached
                if not open_yet.any():
                    break
    return picture


def _overlaps(edges: np.ndarray, begin: int, end: int, side: int) -> tuple[slice, np.ndarray]:
    """Which cells the filters of the pixels from `begin` to `end` meet, and in how many pixels: (pixels, cells)."""
    places = np.arange(begin, end)[:, None]
    lower, upper = edges[:-1].copy(), edges[1:].copy()
    lower[0], upper[-1] = -side, edges[-1] + side  # the edge goes on outwards
    shared = np.minimum(places + side // 2 + 1, upper) - np.maximum(places - side // 2, lower)
    shared = np.maximum(shared, 0).astype(np.int32)
    near = np.flatnonzero(shared.any(axis=0))
    return slice(near[0], near[-1] + 1), shared[:, near[0] : near[-1] + 1]
