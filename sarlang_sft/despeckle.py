"""Speckle: filters that smooth it and keep edges, and its strength (the equivalent number of looks).

All images here are intensities (linear power), float64 of shape (H, W), beside a boolean mask of the same shape.
Pixels out of the mask, or beyond the border, take no part in any sum: windows shrink there instead of mixing them in.
Sums are added directly and in one order: a pixel's result depends on its 7 x 7 neighbourhood alone, down to the last
bit, and no bright target leaks along a running sum.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d

REACH = 3  # pixels that every filter looks at on either side
SIDE = 2 * REACH + 1
STRIP = 64  # rows filtered together: what they need stays in the processor's cache

# The eight halves of the 7 x 7 window, 28 pixels each, two of a kind: on either side of an edge that runs north-south,
# east-west, and along the two diagonals. Per half, its three outer of the nine 3 x 3 means as (row, column).
EDGES = (
    (("west", ((0, 0), (1, 0), (2, 0))), ("east", ((0, 2), (1, 2), (2, 2)))),
    (("north", ((0, 0), (0, 1), (0, 2))), ("south", ((2, 0), (2, 1), (2, 2)))),
    (("north_west", ((0, 1), (0, 0), (1, 0))), ("south_east", ((1, 2), (2, 2), (2, 1)))),
    (("north_east", ((0, 1), (0, 2), (1, 2))), ("south_west", ((1, 0), (2, 0), (2, 1)))),
)
HALVES = tuple(half for edge in EDGES for half, _ in edge)


def refined_lee(intensity: np.ndarray, valid: np.ndarray, looks: float) -> np.ndarray:
    """Lee's edge-aligned local-linear MMSE estimate of the backscatter.

    The means of the nine 3 x 3 squares in a 7 x 7 window, which overlap by one pixel, give the gradient in four
    directions. Its strongest names an edge, and of the two halves beside the edge the one is taken whose mean is
    closer to the central one. With this half's mean m and variance v, and the speckle's squared coefficient of
    variation c = 1 / looks, the estimate is m + b (z - m) with b = max(0, v - c m^2) / ((1 + c) v).

    Source: J.-S. Lee, "Refined filtering of image noise using local statistics", Computer Graphics and Image
    Processing 15, 1981, with the multiplicative model for speckle. Its threshold of the variance, below which the
    whole window is used, is left out: half windows are used everywhere.

    Args:
        looks: Equivalent number of looks of `intensity`.

    Returns:
        The estimate; 0 where not `valid`.
    """
    return _by_strips(intensity, valid, lambda z, w: _refined_lee(z, w, 1 / looks))


def boxcar(intensity: np.ndarray, valid: np.ndarray, looks: float | None) -> np.ndarray:
    """The mean of 7 x 7 pixels; 0 where not `valid`."""
    return _by_strips(intensity, valid, lambda z, w: _box(z, SIDE) / np.maximum(_box(w, SIDE), 1))


def unfiltered(intensity: np.ndarray, valid: np.ndarray, looks: float | None) -> np.ndarray:
    """The intensity as it is; 0 where not `valid`."""
    return np.where(valid, intensity, 0.0)


Filter = Callable[[np.ndarray, np.ndarray, float | None], np.ndarray]
FILTERS: dict[str, Filter] = {"refined_lee": refined_lee, "boxcar": boxcar, "none": unfiltered}


def enl(intensity: np.ndarray) -> float:
    """Equivalent number of looks of pixels of one constant area: squared mean over variance."""
    return float(np.mean(intensity) ** 2 / np.var(intensity))


LOG_LOOKS = np.arange(np.log(0.1), np.log(1e4), 0.02)  # edges of the histogram of local looks
SMOOTHING = 5  # its kernel's standard deviation in bins: a tenth in the logarithm


def count_looks(intensity: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Histogram over `LOG_LOOKS` of the local looks, m^2 / v, of every 7 x 7 window that is valid throughout.

    Histograms of the parts of an image can be added.
    """
    z = np.where(valid, intensity, 0.0)
    if min(z.shape) < SIDE:
        return np.zeros(len(LOG_LOOKS) - 1, np.int64)
    whole = _box(valid.astype(np.uint8), SIDE) == SIDE**2
    mean, square = _box(z, SIDE)[whole] / SIDE**2, _box(z * z, SIDE)[whole] / SIDE**2
    variance = square - mean * mean
    varied = variance > 1e-9 * square
    local = np.log(mean[varied] ** 2 / variance[varied])
    return np.histogram(local, LOG_LOOKS)[0]


def estimate_looks(counts: np.ndarray) -> float | None:
    """The equivalent number of looks of an image: the mode of its local looks, at least 1; None if there are none.

    Texture and edges lower the local looks of some windows, never of the bulk of homogeneous ones, which the mode
    finds without a person choosing an area. Source: S. N. Anfinsen, A. P. Doulgeris, T. Eltoft, "Estimation of the
    Equivalent Number of Looks in Polarimetric Synthetic Aperture Radar Imagery", IEEE TGRS 47, 2009 (the density of
    small-sample estimates over a whole scene); here of the estimate m^2 / v of one polarisation, over its logarithm.

    Args:
        counts: From [`count_looks`].
    """
    if not counts.any():
        return None
    peak = int(np.argmax(gaussian_filter1d(counts.astype(float), SMOOTHING, mode="constant")))
    return max(1.0, float(np.exp(LOG_LOOKS[peak : peak + 2].mean())))


def _by_strips(
    intensity: np.ndarray, valid: np.ndarray, of_padded: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Apply a function to strips of `REACH` more invalid pixels around the image, and put its results together."""
    z = np.pad(np.where(valid, intensity, 0.0), REACH)
    w = np.pad(valid.astype(np.uint8), REACH)
    out = np.empty(intensity.shape)
    for top in range(0, len(out), STRIP):
        rows = slice(top, top + STRIP + 2 * REACH)
        out[top : top + STRIP] = of_padded(z[rows], w[rows])
    out[~valid] = 0
    return out


def _box(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over side x side pixels, of every place where the square fits."""
    width = values.shape[1] - side + 1
    return _down(sum(values[:, right : right + width] for right in range(side)), side)


def _down(rows: np.ndarray, side: int) -> np.ndarray:
    """Sums over `side` rows, of every place where they fit."""
    height = len(rows) - side + 1
    total = rows[:height].copy()
    for below in range(1, side):
        total += rows[below : below + height]
    return total


def _half_sums(values: np.ndarray) -> dict[str, np.ndarray]:
    """Sums over the eight halves; `values` has `REACH` more pixels on every side."""
    height, width = (length - 2 * REACH for length in values.shape)
    columns = [values[:, right : right + width] for right in range(SIDE)]
    left, right = [columns[0]], [columns[-1]]  # sums of the first 1, 2 ... 7 columns of the window, and of the last
    for place in range(1, SIDE):
        left.append(left[-1] + columns[place])
        right.append(right[-1] + columns[-1 - place])

    def slanted(runs: list[np.ndarray]) -> np.ndarray:
        total = runs[0][:height].copy()
        for below in range(1, SIDE):
            total += runs[below][below : below + height]
        return total

    return {
        "west": _down(left[REACH], SIDE),
        "east": _down(right[REACH], SIDE),
        "north": _down(left[-1][: height + REACH], REACH + 1),
        "south": _down(left[-1][REACH:], REACH + 1),
        "north_west": slanted(left[::-1]),
        "south_east": slanted(right),
        "north_east": slanted(right[::-1]),
        "south_west": slanted(left),
    }


def _choose_half(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The number in `HALVES` of every pixel's half window; the strips have `REACH` more pixels on every side."""
    height, width = (length - 2 * REACH for length in z.shape)
    count = _box(w, 3)
    means = _box(z, 3) / np.maximum(count, 1)
    centre = means[2 : 2 + height, 2 : 2 + width]
    places = [(row, column) for row in range(3) for column in range(3)]
    squares = {(i, j): np.s_[2 * i : 2 * i + height, 2 * j : 2 * j + width] for i, j in places}
    mean = {place: np.where(count[square] > 0, means[square], centre) for place, square in squares.items()}
    steepest, half = np.full((height, width), -1.0), np.zeros((height, width), np.uint8)
    for number, ((_, near), (_, far)) in enumerate(EDGES):
        gradient = np.abs(sum(mean[place] for place in near) - sum(mean[place] for place in far))
        farther = np.abs(centre - mean[far[1]]) < np.abs(centre - mean[near[1]])
        steeper = gradient > steepest
        np.copyto(half, 2 * number + farther, where=steeper, casting="unsafe")
        np.copyto(steepest, gradient, where=steeper)
    return half


def _refined_lee(z: np.ndarray, w: np.ndarray, speckle: float) -> np.ndarray:
    half = _choose_half(z, w)
    count, total, squares = (np.zeros(half.shape) for _ in range(3))
    sums = [(count, _half_sums(w)), (total, _half_sums(z)), (squares, _half_sums(z * z))]
    for number, name in enumerate(HALVES):
        chosen = half == number
        for out, of_half in sums:
            np.copyto(out, of_half[name], where=chosen)
    count = np.maximum(count, 1)
    mean = total / count
    variance = np.maximum(squares / count - mean * mean, 0)
    signal = np.maximum(variance - speckle * mean * mean, 0) / (1 + speckle)
    weight = np.divide(signal, variance, out=np.zeros_like(signal), where=variance > 0)
    return mean + weight * (z[REACH:-REACH, REACH:-REACH] - mean)
