"""Are objects found where they are? Predicted boxes against those that a stored answer names, by their overlap.

The figure is the one of SARChat-Bench-2M (arXiv 2502.08168): TP / (TP + FP + FN) over all boxes, at an intersection
over union of 0.25 and of 0.5. Boxes are matched one to one, as many as can be; their classes are not looked at.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from scipy.optimize import linear_sum_assignment

from sarlang_sft.boxes import PLACEHOLDER, corners
from sarlang_sft.scoring.intervals import ratio_with_interval
from sarlang_sft.scoring.prediction_lines import BOX_NUMBERS, Boxes, is_finite
from sarlang_sft.scoring.predictions import Row, group_by

THRESHOLDS = (0.25, 0.5)
RIGHT = 0.5  # the overlap at which `exact` calls a box right

_LIST = re.compile(r"\[([^\[\]]*+)\]")
_NUMBER_LIST = re.compile(r"\s*(?:\[[-+.,\deE\s]*+\][\s,.;]*+)++")


def is_box_label(label: str) -> bool:
    """Whether a stored answer gives boxes: as `<box:i>`, or as nothing but lists of 4 or 8 numbers."""
    if "[" in label and _NUMBER_LIST.fullmatch(label):
        return all(listed_boxes(label))
    return PLACEHOLDER.search(label) is not None


def true_boxes(row: Row) -> Boxes:
    """The boxes that the stored answer names or lists, in pixels; without numbers where the image has no such box."""
    named = [int(number) for number in PLACEHOLDER.findall(row.label)]
    if not named:
        return listed_boxes(row.label)
    return tuple(tuple(row.boxes[number].points) if number < len(row.boxes) else () for number in named)


def answered_boxes(row: Row) -> Boxes | None:
    """The boxes of the prediction; None if it has none that could be told from its text.

    Lists in a text are boxes in pixels only where the stored answer lists its own in that way: otherwise nothing says
    in which units the model speaks.
    """
    if row.predicted is not None or row.predict is None:
        return row.predicted
    return None if PLACEHOLDER.search(row.label) else listed_boxes(row.predict)


def listed_boxes(text: str) -> Boxes:
    """The bracketed lists of a text, as `x y w h` or four corners; without numbers where they are unusable."""
    boxes = []
    for listed in _LIST.findall(text):
        try:
            numbers = tuple(float(number) for number in listed.replace(",", " ").split())
        except ValueError:
            numbers = ()
        boxes.append(numbers if len(numbers) in BOX_NUMBERS and all(map(is_finite, numbers)) else ())
    return tuple(boxes)


def match_boxes(rows: Sequence[Row], threshold: float) -> np.ndarray:
    """For every row TP, FP and FN, shape (rows, 3), int.

    Args:
        threshold: Least intersection over union of a pair, 0..1.
    """
    counts = np.zeros((len(rows), 3), dtype=int)
    for index, row in enumerate(rows):
        truth, found = true_boxes(row), answered_boxes(row) or ()
        overlaps = intersection_over_union(truth, found) >= threshold
        hits = int(overlaps[linear_sum_assignment(overlaps, maximize=True)].sum())
        counts[index] = hits, len(found) - hits, len(truth) - hits
    return counts


def intersection_over_union(truth: Boxes, found: Boxes) -> np.ndarray:
    """Of every pair, shape (truth, found), 0..1; 0 with a box that has no numbers or no area."""
    one, other = _shapes(truth)[:, None], _shapes(found)[None, :]
    with np.errstate(all="ignore"):  # numbers as large as a model may write
        common = shapely.area(shapely.intersection(one, other))
        overlap = common / (shapely.area(one) + shapely.area(other) - common)
    return np.nan_to_num(overlap, nan=0.0, posinf=0.0, neginf=0.0)


def _shapes(boxes: Boxes) -> np.ndarray:
    """Hulls, which make a rotated box of its corners in any order."""
    usable = [box if len(box) == 8 or (len(box) == 4 and min(box[2:]) > 0) else () for box in boxes]
    hulls = [shapely.MultiPoint(corners(box)).convex_hull if box else shapely.Polygon() for box in usable]
    return np.array(hulls, dtype=object)


def score_boxes(rows: Sequence[Row]) -> dict[str, Any]:
    """Box figures over all `rows` and by task, for questions whose stored answers give boxes; at least one.

    Returns:
        `n` questions, how many of them `without_boxes` in their prediction, how many predicted boxes are `unusable`
        (they count as false positives), `iou_0.25` and `iou_0.5` with `tp fp fn value low high`, and `by_task`.
    """
    matched = {threshold: match_boxes(rows, threshold) for threshold in THRESHOLDS}

    def figures(group: Sequence[int]) -> dict[str, Any]:
        answered = [answered_boxes(rows[index]) for index in group]
        images = [rows[index].images for index in group]
        result: dict[str, Any] = {
            "without_boxes": sum(not boxes for boxes in answered),
            "unusable": sum(box == () for boxes in answered for box in boxes or ()),
        }
        for threshold, counts in matched.items():
            chosen = counts[list(group)]
            tp, fp, fn = chosen.sum(axis=0).tolist()
            share = ratio_with_interval(chosen[:, 0], chosen.sum(axis=1), images)
            result[f"iou_{threshold}"] = {"tp": tp, "fp": fp, "fn": fn, **share}
        return result

    by_task = group_by(rows, lambda row: row.task, figures)
    return {"n": len(rows), **figures(range(len(rows))), "by_task": by_task}
