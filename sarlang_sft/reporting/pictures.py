"""Pictures of what models answer: contact sheets and confusion matrices, as PNG."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from sarlang_sft.errors import InputError
from sarlang_sft.html_pages import visible
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import read_image
from sarlang_sft.reporting.given import PLAIN, Run
from sarlang_sft.reporting.tables import bare_question, right_answers
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.predictions import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MOST_RUNS = 3  # on a contact sheet


def contact_sheet(runs: Sequence[Run], image_root: Path, path: Path, samples: int = 12) -> None:
    """Write a picture of images, each with a question, its truth, and the answers of the first runs that see them.

    Images are spread evenly over the split and tasks take turns, so that nothing is picked by how well it went.
    """
    shown = ([run for run in runs if run.kind == PLAIN] or list(runs))[:MOST_RUNS]
    rows = [run.questions or run.captions for run in shown]
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows[0]):
        if row.images:
            by_task[row.task].append(index)
    tasks = sorted(by_task)
    chosen = []
    for place in range(samples if tasks else 0):
        members = by_task[tasks[place % len(tasks)]]
        chosen.append(members[(place * len(members)) // samples])
    down = max(1, -(-len(chosen) // 4))
    figure, axes = plt.subplots(down, 4, figsize=(14, (4 + 0.35 * len(shown)) * down), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, chosen, strict=False):
        row = rows[0][index]
        try:
            axis.imshow(read_image(path_inside(image_root, row.images[0])).astype(np.uint8))
        except InputError:
            axis.text(0.5, 0.5, "unreadable image", ha="center")
        axis.set_title(plain("\n".join(textwrap.wrap(bare_question(row.question), 44)[:4])), fontsize=8)
        lines = [(f"truth: {visible(row.label)}", "black")]
        for run, answered in zip(shown, rows, strict=True):
            sign, colour = ("✓", "tab:green") if right_answers([answered[index]])[0] else ("✗", "tab:red")
            lines.append((f"{sign} {run.name}: {visible(answered[index].predict or '-')}", colour))
        for line, (text, colour) in enumerate(lines):
            said = plain(textwrap.shorten(text, 56))
            axis.text(0, -0.03 - 0.07 * line, said, color=colour, fontsize=9, va="top", transform=axis.transAxes)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def confusion_picture(rows: Sequence[Row], path: Path, title: str) -> float:
    """Write the confusion matrix of a classification question as a picture; returns the accuracy (0-1).

    Predictions that are no class of the truth are counted under `other`.
    """
    names = sorted({row.label for row in rows})
    columns = [*names, "other"]
    counts = np.zeros((len(names), len(columns)), dtype=int)
    for row in rows:
        predicted = next((name for name in names if exact_verdict(name, row.predict or "")), "other")
        counts[names.index(row.label), columns.index(predicted)] += 1
    accuracy = float(np.trace(counts) / counts.sum())
    labels = [name.rstrip(".") for name in names]
    title = f"{title}: {100 * accuracy:.1f} % of {len(rows)}"
    matrix_picture(counts, labels, [*labels, "other"], path, title)
    return accuracy


def matrix_picture(counts: np.ndarray, names: Sequence[str], columns: Sequence[str], path: Path, title: str) -> None:
    """Write a confusion matrix as a picture; a stronger colour is a larger share of the row.

    Args:
        counts: (rows, columns) of whole numbers.
        names: Of the true classes, one per row.
        columns: Of what was said, one per column.
    """
    side = max(7.5, 2.5 + 0.45 * len(columns))
    figure, axis = plt.subplots(figsize=(side, side - 1))
    axis.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        dark = counts[i, j] > 0.5 * counts[i].sum()
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), [plain(name) for name in columns], rotation=45, ha="right")
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    axis.set_title(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
