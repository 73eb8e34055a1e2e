"""Figures of recognition from the scores of classes: top-k, by class, what is taken for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sarlang_sft.contrastive.class_folder import ClassFolder
from sarlang_sft.contrastive.results import write_figures
from sarlang_sft.errors import InputError
from sarlang_sft.reporting.pictures import matrix_picture
from sarlang_sft.scoring.intervals import share_with_interval

TOP = (1, 3, 5)


class Scored(NamedTuple):
    """What a model makes of images.

    Attributes:
        scores: (n, C) float, higher where a class fits better.
        labels: (n,) int64, the true class of each.
        unreadable: The reason by image, for those that are not among them.
    """

    scores: np.ndarray
    labels: np.ndarray
    unreadable: dict[Path, str]


def ranks_of_truth(scored: Scored) -> np.ndarray:
    """(n,) int64: how many classes come before the true one; of equal scores the earlier class does."""
    if not np.isfinite(scored.scores).all():
        raise InputError(
            "the model's scores are not all finite numbers; its weights are damaged, or training diverged"
        )
    order = np.argsort(-scored.scores, axis=1, kind="stable")
    return np.argmax(order == scored.labels[:, None], axis=1)


def confusion_counts(scored: Scored) -> np.ndarray:
    """(C, C) int64: images by their true class (rows) and the one with the highest score."""
    classes = scored.scores.shape[1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (scored.labels, scored.scores.argmax(axis=1)), 1)
    return counts


def recognition_figures(runs: Sequence[Scored], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Top-1, -3 and -5 and the mean over classes of their accuracies, in 0-1.

    Top-k has no meaning for k classes and is left out there. Intervals of one run are Wilson's, over images. Those of
    several, over their mean, are the wider of Wilson's and Student's t over the runs.

    Args:
        runs: Of the same images, by seeds.

    Raises:
        InputError: A class has no image that could be read, or scores are not finite.
    """
    counts = np.bincount(runs[0].labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise InputError(f"class {empty[0]}: none of its images can be read; mend them, or remove the folder")
    ranks = [ranks_of_truth(run) for run in runs]
    figures = {f"top{k}": _mean([rank < k for rank in ranks]) for k in TOP if k < len(names)}
    by_class = [[(rank == 0)[run.labels == label].mean() for label in range(len(names))]
                for run, rank in zip(runs, ranks, strict=True)]  # fmt: skip
    return figures | {"mean_per_class": {"value": float(np.mean(by_class))}}


def _mean(right: Sequence[np.ndarray]) -> dict[str, float]:
    """The mean share of (n,) bool arrays, one per run, with its interval."""
    shares = [float(one.mean()) for one in right]
    if len(shares) == 1:
        return share_with_interval(right[0].tolist())
    value, n = float(np.mean(shares)), len(right[0])
    wilson = stats.binomtest(round(value * n), n).proportion_ci(method="wilson")
    reach = float(stats.t.ppf(0.975, len(shares) - 1) * stats.sem(shares))
    low, high = min(wilson.low, value - reach), max(wilson.high, value + reach)
    return {"value": value, "low": max(0.0, float(low)), "high": min(1.0, float(high))}


def class_table(runs: Sequence[Scored], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """`n`, and the accuracy with its interval, of every class."""
    ranks = [ranks_of_truth(run) for run in runs]
    truth = runs[0].labels
    return {
        name: {"n": int((truth == label).sum()), **_mean([(rank == 0)[truth == label] for rank in ranks])}
        for label, name in enumerate(names)
    }


def training_protocol(shots: int | None, seeds: Sequence[int]) -> str:
    """What was trained on, in words."""
    return f"{f'{shots} shots' if shots is not None else 'all of train'}, seeds {', '.join(map(str, seeds))}"


def write_recognition(
    out: Path,
    task: str,
    protocol: str,
    model: str,
    folder: ClassFolder,
    runs: Sequence[Scored],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the figures of recognition, see [`write_figures`], and return them.

    Besides the figures the file holds `by_class`, `classes` (the names of rows and columns) and `confusion` (counts of
    images, summed over runs), `baselines` (accuracies of guessing, and of saying always the most frequent class), and
    `left_out` (files in the folders that are no images).

    Args:
        folder: What was tested on.
        runs: One per seed.
    """
    classes = np.bincount(runs[0].labels)
    about = {
        "classes": folder.names,
        "spoken": folder.spoken,
        "by_class": class_table(runs, folder.names),
        "confusion": sum(confusion_counts(run) for run in runs).tolist(),
        "baselines": {"guessing": 1 / len(folder.names), "most_frequent": float(classes.max() / classes.sum())},
        "runs": [{"top1": float((ranks_of_truth(run) == 0).mean())} for run in runs],
        "left_out": {str(path): reason for path, reason in folder.left_out.items()},
    }
    figures = recognition_figures(runs, folder.names)
    return write_figures(
        out, task, protocol, model, len(runs[0].labels), runs[0].unreadable, figures, about | dict(more)
    )


def draw_confusion(content: Mapping[str, Any], path: Path) -> None:
    """Draw the confusion matrix of what [`write_recognition`] returned."""
    counts, names = np.array(content["confusion"]), content["classes"]
    share = 100 * float(np.trace(counts) / counts.sum())
    matrix_picture(counts, names, names, path, f"Top-1: {share:.1f} % of {counts.sum():,}")


def show_recognition(content: Mapping[str, Any]) -> str:
    """What else stands beside the figures, as lines of text: baselines, the worst classes, L2, files left out."""
    guessing, frequent = content["baselines"]["guessing"], content["baselines"]["most_frequent"]
    lines = [f"  guessing gives {100 * guessing:.1f}, always the most frequent class {100 * frequent:.1f}"]
    worst = sorted(content["by_class"].items(), key=lambda item: item[1]["value"])[:3]
    lines.append("  lowest: " + ", ".join(f"{name} {100 * one['value']:.1f}" for name, one in worst))
    for seed, one in content.get("chosen", {}).items():
        doubt = "" if one["converged"] else "; the fit has not converged"
        share = f"{100 * one['held_out_accuracy']:.1f}"
        lines.append(f"  seed {seed}: L2 {one['l2']:.2g}, {share} right on the held-out part of train{doubt}")
    if unread := content.get("train_unreadable"):
        shown, why = next(iter(unread.items()))
        lines.append(f"  not trained on: {len(unread)} unreadable images, such as {shown} ({why})")
    if content["left_out"]:
        shown, why = next(iter(content["left_out"].items()))
        lines.append(f"  left out: {len(content['left_out'])} files, such as {shown} ({why})")
    return "\n".join(lines)
