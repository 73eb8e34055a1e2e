"""Pictures of what models answer: contact sheets and confusion matrices, as PNG."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import read_image
from sarlang_sft.reporting.tables import bare_question, verdicts
from sarlang_sft.scoring.predictions import Row
from sarlang_sft.scoring.vqa import exact_verdict

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def contact_sheet(
    before: Sequence[Row], after: Sequence[Row], image_root: Path, path: Path, samples: int = 12
) -> None:
    """Write a picture of test images, each with a question, its truth, and the answers before and after tuning.

    Images are spread evenly over the split and tasks take turns, so that nothing is picked by how well it went.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(after):
        by_task[row.task].append(index)
    tasks = sorted(by_task)
    chosen = []
    for place in range(samples):
        members = by_task[tasks[place % len(tasks)]]
        chosen.append(members[(place * len(members)) // samples])
    rows = -(-samples // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(14, 4.7 * rows), layout="constrained")
    for axis, index in zip(axes.flat, chosen, strict=False):
        row = after[index]
        axis.imshow(read_image(path_inside(image_root, row.images[0])).astype(np.uint8))
        axis.set_axis_off()
        axis.set_title("\n".join(textwrap.wrap(bare_question(row.question), 44)), fontsize=8)
        lines = [("truth", row.label, "black")]
        for name, answered in (("before", before[index]), ("after", row)):
            right = verdicts([answered])[0]
            lines.append((name, answered.predict or "-", "tab:green" if right else "tab:red"))
        for line, (name, text, colour) in enumerate(lines):
            shown = f"{name}: {textwrap.shorten(text, 48)}"
            axis.text(0, -0.03 - 0.07 * line, shown, color=colour, fontsize=9, va="top", transform=axis.transAxes)
    figure.savefig(path, dpi=80)
    plt.close(figure)


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
    figure, axis = plt.subplots(figsize=(7.5, 6.5))
    axis.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        dark = counts[i, j] > 0.5 * counts[i].sum()
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), [name.rstrip(".") for name in columns], rotation=45, ha="right")
    axis.set_yticks(range(len(names)), [name.rstrip(".") for name in names])
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    accuracy = float(np.trace(counts) / counts.sum())
    axis.set_title(f"{title}: {100 * accuracy:.1f} % of {len(rows)}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return accuracy
