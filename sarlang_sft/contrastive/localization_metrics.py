"""How well a heat map shows the regions that a text is true of: Rsu, Ras, Rda and Rmi of semantic localisation.

Yuan et al., "Learning to Evaluate Performance of Multi-modal Semantic Localization", arXiv 2209.06515. Formulas and
constants are those of the authors' program, evaluations/SLM.py of github.com/xiaoyuan1996/SemanticLocalizationMetrics,
which others use, too (GeoRSCLIP's inference_tool.py); they were not compared with the numbered equations of the paper.
Two things differ from that program: the map is no JPEG in between, and of overlapping regions all is inside, where
OpenCV's `fillPoly` leaves what two of them share outside.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from sarlang_sft.imagery import to_bytes

SALIENCE = 0.707  # beta of Rsu
TINY = 1e-7  # beside the heat outside, which may be 0
REACH = 1.5  # radius of a region in mean distances of its corners from its centre
STEEPNESS = 3.0  # of Ras
CROWDING = 0.5  # eta of Rda
WEIGHTS = {"rsu": 0.40, "ras": 0.35, "rda": 0.25}  # of Rmi
SMOOTHING, PASSES = 50, 5  # pixels of the mean filter in front of the search for peaks, and how often
APART = 1000  # pixels: side of the square in which a peak is the highest
WARM = 0.5  # heat of a peak

Point = tuple[float, float]  # x, y in pixels
Region = Sequence[Point]  # the corners of a polygon


@dataclass(frozen=True)
class Circle:
    """A region as the metrics see it: centre and radius in whole pixels."""

    x: int
    y: int
    radius: int


class LocalizationMetrics(NamedTuple):
    """Of one query: `rmi`, `rsu` and `rda` are better the higher, `ras` the lower; all lie in 0-1.

    Attributes:
        peaks: (x, y) in pixels, the hottest first.
    """

    rmi: float
    rsu: float
    ras: float
    rda: float
    peaks: list[tuple[int, int]]


def region_mask(height: int, width: int, regions: Sequence[Region]) -> np.ndarray:
    """(H, W) bool: what lies in any region, borders included; corners are cut to whole pixels."""
    picture = Image.new("1", (width, height))
    draw = ImageDraw.Draw(picture)
    for region in regions:
        draw.polygon([(int(x), int(y)) for x, y in region], fill=1, outline=1)
    return np.asarray(picture)


def circle_of(region: Region) -> Circle:
    """The mean of the corners and 1.5 times their mean distance from it, cut to whole pixels.

    Corners count as often as they are listed, as published.
    """
    corners = np.asarray(region, float)
    x, y = (int(value) for value in corners.mean(axis=0))
    return Circle(x, y, int(REACH * np.linalg.norm(corners - (x, y), axis=1).mean()))


def attention_peaks(heat: np.ndarray) -> list[tuple[int, int]]:
    """Where attention gathers: (x, y) in pixels, the hottest first; none of a map that is 0 everywhere.

    The 8-bit map is smoothed five times by a mean of 50 x 50 pixels; a peak is the centre of the pixels that are then
    the highest within 1,000 x 1,000, if the map itself is at least half warm there. A mean of an even number of pixels
    is half a pixel off, so that a peak is 2.5 pixels further right and down than it was, as published.

    Args:
        heat: (H, W) in 0-1.
    """
    smooth = to_bytes(heat * 255)
    for _ in range(PASSES):
        smooth = to_bytes(ndimage.uniform_filter(smooth, SMOOTHING, mode="mirror", output=np.float64))
    highest = (smooth == ndimage.maximum_filter(smooth, APART)) & (smooth > 0)
    labels, count = ndimage.label(highest, structure=np.ones((3, 3)))
    centres = ndimage.center_of_mass(highest, labels, range(1, count + 1))
    peaks = [(int(x), int(y)) for y, x in centres]
    peaks.sort(key=lambda peak: heat[peak[1], peak[0]], reverse=True)
    return [(x, y) for x, y in peaks if heat[y, x] >= WARM]


def salient_area(heat: np.ndarray, mask: np.ndarray) -> float:
    """Rsu, 0-1, higher is better: 1 - exp(-0.707 r), where r is the mean heat inside over the mean heat outside.

    A map that is 0 everywhere has 0, one that is 0 outside alone 1. Regions that cover everything leave no outside:
    0 by the formula; such queries are not asked, see [`regions_problem`].

    Args:
        heat: (H, W) in 0-1.
        mask: (H, W) bool, somewhere true.
    """
    inside, covered = heat[mask].sum(dtype=np.float64), int(mask.sum())
    outside = heat.sum(dtype=np.float64) - inside
    ratio = inside / (max(outside, 0.0) + TINY) * (mask.size - covered) / covered
    return 1 - math.exp(-SALIENCE * ratio)


def attention_shift(circles: Sequence[Circle], peaks: Sequence[Point]) -> float:
    """Ras, 0-1, lower is better: (exp(3 d) - 1) / (exp(3) - 1).

    d is the mean over regions of the mean distance of the peaks in a region's circle from its centre, over its radius;
    1 for a region without a peak. So it is 1 where there are no peaks at all.
    """
    shifts = []
    for circle in circles:
        distances = np.linalg.norm(_within(circle, peaks) - (circle.x, circle.y), axis=1)
        shifts.append(distances.mean() / circle.radius if len(distances) else 1.0)
    return math.expm1(STEEPNESS * float(np.mean(shifts))) / math.expm1(STEEPNESS)


def discrete_attention(circles: Sequence[Circle], peaks: Sequence[Point]) -> float:
    """Rda, 0-1, higher is better: the mean over regions of 0 without a peak in the circle, 1 with one peak.

    With n > 1 peaks it is (1 - s) / 2 + exp(-(n + 2) / 2); s is their mean distance from their mean, over the radius.
    """
    found = []
    for circle in circles:
        own = _within(circle, peaks)
        if len(own) < 2:
            found.append(float(len(own)))
            continue
        spread = np.linalg.norm(own - own.mean(axis=0), axis=1).mean() / circle.radius
        found.append(0.5 * (1 - spread) + math.exp(-CROWDING * (len(own) + 2)))
    return float(np.mean(found))


def _within(circle: Circle, peaks: Sequence[Point]) -> np.ndarray:
    """(n, 2): those of the peaks that lie in the circle."""
    points = np.asarray(peaks, float).reshape(-1, 2)
    return points[np.linalg.norm(points - (circle.x, circle.y), axis=1) <= circle.radius]


def localization_metrics(heat: np.ndarray, regions: Sequence[Region]) -> LocalizationMetrics:
    """All metrics of one query.

    Args:
        heat: (H, W) in 0-1.
        regions: At least one, without a [`regions_problem`].
    """
    circles, peaks = [circle_of(region) for region in regions], attention_peaks(heat)
    rsu = salient_area(heat, region_mask(*heat.shape, regions))
    ras, rda = attention_shift(circles, peaks), discrete_attention(circles, peaks)
    return LocalizationMetrics(mean_indicator(rsu, ras, rda), rsu, ras, rda, peaks)


def mean_indicator(rsu: float, ras: float, rda: float) -> float:
    """Rmi = 0.40 Rsu + 0.35 (1 - Ras) + 0.25 Rda."""
    return WEIGHTS["rsu"] * rsu + WEIGHTS["ras"] * (1 - ras) + WEIGHTS["rda"] * rda


def regions_problem(height: int, width: int, regions: Sequence[Region]) -> str | None:
    """Why the metrics cannot be had of these regions in an image of this size; None if they can.

    What of a region lies outside the image is cut off, as published, but not all of a region may.
    """
    for number, region in enumerate(regions):
        if circle_of(region).radius < 1:
            return f"region {number} has no extent"
        if not region_mask(height, width, [region]).any():
            return f"region {number} lies outside the image of {width} x {height} pixels"
    if region_mask(height, width, regions).all():
        return "the regions cover the whole image: there is nothing to find"
    return None


def cut_off(height: int, width: int, regions: Sequence[Region]) -> bool:
    """Whether a corner of a region lies outside the image."""
    corners = np.concatenate([np.asarray(region, float) for region in regions])
    return bool((corners < 0).any() or (corners > (width, height)).any())
