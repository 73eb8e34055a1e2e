"""What right and wrong leave out: how far a count is off, if a position is half right, which items of a list are."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sarlang_sft.scoring.exact import label_count, position_words, predicted_count, things_named
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, group_by
from sarlang_sft.scoring.vocabulary import Vocabulary


def score_counts(rows: Sequence[Row], vocabulary: Vocabulary) -> dict[str, Any]:
    """For questions whose stored answer is a number: `n`, of them `with_number` in their prediction, and over those
    the mean absolute error `mae` and the share `within_one` of the truth (None where there are none); and `by_task`.
    """

    def figures(group: Sequence[int]) -> dict[str, Any]:
        pairs = []
        for row in (rows[index] for index in group):
            predicted = predicted_count(row.predict or "", row.question, vocabulary)
            if predicted is not None:
                pairs.append((float(predicted), float(label_count(row.label, vocabulary) or 0)))
        if not pairs:
            return {"with_number": 0, "mae": None, "within_one": None}
        errors = np.abs(np.subtract(*np.array(pairs).T))
        return {"with_number": len(pairs), "mae": errors.mean().item(), "within_one": (errors <= 1).mean().item()}

    return _with_tasks(rows, figures)


def score_positions(rows: Sequence[Row], vocabulary: Vocabulary) -> dict[str, Any]:
    """For questions whose stored answer is a position: the share whose prediction is `compatible` with it.

    Two positions are compatible if all words of the one are in the other, as `top` and `top left`, `center` and `near
    center`: the coarser one does not contradict the finer one.
    """

    def figures(group: Sequence[int]) -> dict[str, Any]:
        compatible = []
        for row in (rows[index] for index in group):
            truth, said = position_words(row.label, vocabulary), position_words(row.predict or "", vocabulary)
            compatible.append(bool(said) and (said <= truth or truth <= said))
        return {"compatible": share_with_interval(compatible)}

    return _with_tasks(rows, figures)


def score_lists(rows: Sequence[Row], vocabulary: Vocabulary) -> dict[str, Any]:
    """For questions whose stored answer names things: `precision`, `recall` and `f1` over all items together."""

    def figures(group: Sequence[int]) -> dict[str, Any]:
        hits = said = true = 0
        for row in (rows[index] for index in group):
            truth, named = things_named(row.label, vocabulary), things_named(row.predict or "", vocabulary)
            hits, said, true = hits + len(truth & named), said + len(named), true + len(truth)
        return {"precision": hits / max(said, 1), "recall": hits / max(true, 1), "f1": 2 * hits / max(said + true, 1)}

    return _with_tasks(rows, figures)


def _with_tasks(rows: Sequence[Row], figures: Callable[[Sequence[int]], dict[str, Any]]) -> dict[str, Any]:
    by_task = group_by(rows, lambda row: row.task, figures)
    return {"n": len(rows), **figures(range(len(rows))), "by_task": by_task}


def figures_summary(result: dict[str, Any]) -> str:
    """What stands beside the score of answers, a line each; empty if nothing does."""
    lines = []
    if "counting" in result and result["counting"]["with_number"]:
        found = result["counting"]
        errors = f"mean absolute error {found['mae']:.3f}, within one {found['within_one']:.4f}"
        lines.append(f"counts: {errors}, over {found['with_number']} of {found['n']} answers that give a number")
    if "positions" in result:
        found = result["positions"]
        lines.append(f"positions: {found['compatible']['value']:.4f} of {found['n']} right or compatible")
    if "lists" in result:
        found = result["lists"]
        lines.append(
            f"things named: precision {found['precision']:.4f}, recall {found['recall']:.4f}, F1 {found['f1']:.4f}"
        )
    if "boxes" in result:
        found = result["boxes"]
        scores = ", ".join(
            f"{found[name]['value']:.4f} at {name.replace('_', ' ')}" for name in ("iou_0.25", "iou_0.5")
        )
        counts = f"{found['without_boxes']} of {found['n']} answers without boxes, {found['unusable']} boxes unusable"
        lines.append(f"boxes, TP / (TP + FP + FN): {scores}; {counts}")
    return "\n".join(lines)
