"""A picture of retrieval: queries, and what a model finds for them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.html_pages import visible
from sarlang_sft.imagery import read_image
from sarlang_sft.reporting.pictures import plain
from sarlang_sft.whole_output import whole_file

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

QUERIES, SHOWN = 4, 5  # of each direction, and what is found for each
WIDTH, ROW, DPI = 9.0, 1.6, 110  # inches, dots per inch: 990 pixels, which a README shows as they are
RIGHT, WRONG = "tab:green", "tab:red"
QUERY_CHARACTERS, FOUND_CHARACTERS = 26, 92  # in a line


def retrieval_gallery(pairs: Pairs, images: torch.Tensor, texts: torch.Tensor, path: Path) -> None:
    """Write a PNG: texts with the images found for them, then images with the texts found, the most similar first.

    What is right by `all-positives` is framed green with a tick, what is wrong red with a cross. The queries are
    spread evenly over the images and texts, so that nothing is picked by how well it went.

    Args:
        images: (images, D) of length 1, by row of `pairs.paths`.
        texts: (texts, D) of length 1, by row of `pairs.texts`.
    """
    of_texts, of_images = spread(len(texts)), spread(len(images))
    rows = len(of_texts) + len(of_images)
    figure = plt.figure(figsize=(WIDTH, ROW * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, SHOWN + 1, width_ratios=[1.35] + [1] * SHOWN)
    for row, (text, found) in enumerate(zip(of_texts, nearest_rows(texts[of_texts], images), strict=True)):
        _write(figure.add_subplot(grid[row, 0]), pairs.texts[text])
        right = pairs.true_of(found, np.array([text]))[:, 0]
        for place, image in enumerate(found):
            _frame(figure.add_subplot(grid[row, 1 + place]), pairs.paths[image], bool(right[place]))
    for row, (image, found) in enumerate(
        zip(of_images, nearest_rows(images[of_images], texts), strict=True), len(of_texts)
    ):
        _show(figure.add_subplot(grid[row, 0]), pairs.paths[image])
        right = pairs.true_of(np.array([image]), found)[0]
        listed = [(pairs.texts[text], bool(hit)) for text, hit in zip(found, right, strict=True)]
        _list(figure.add_subplot(grid[row, 1:]), listed, pairs.captions_of(image)[0])
    with whole_file(path) as file:
        figure.savefig(file, dpi=DPI, format="png")
    plt.close(figure)


def spread(count: int) -> list[int]:
    """Up to `QUERIES` of `count` rows, evenly spaced."""
    some = min(QUERIES, count)
    return [(2 * place + 1) * count // (2 * some) for place in range(some)]


def nearest_rows(queries: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
    """(queries, up to `SHOWN`) int64: the rows of `candidates` that are most similar, the most similar first."""
    return (queries @ candidates.T).topk(min(SHOWN, len(candidates)), dim=1).indices.numpy()


def _show(axis: Axes, path: Path) -> None:
    axis.imshow(read_image(path).astype(np.uint8))
    axis.set_xticks([])
    axis.set_yticks([])


def _frame(axis: Axes, path: Path, right: bool) -> None:
    _show(axis, path)
    colour = RIGHT if right else WRONG
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=4)
    axis.set_xlabel("✓" if right else "✗", color=colour, fontsize=10, labelpad=1)


def _write(axis: Axes, text: str) -> None:
    axis.set_axis_off()
    lines = "\n".join(_wrapped(text, QUERY_CHARACTERS, 7))
    axis.text(0, 0.5, lines, fontsize=9, va="center", transform=axis.transAxes)


def _list(axis: Axes, found: Sequence[tuple[str, bool]], true: str) -> None:
    """The texts found, one below the other, and below them one of the image's own."""
    axis.set_axis_off()
    lines = [(f"{'✓' if right else '✗'} {text}", RIGHT if right else WRONG) for text, right in found]
    lines.append((f"its own: {true}", "dimgray"))
    for place, (text, colour) in enumerate(lines):
        (said,) = _wrapped(text, FOUND_CHARACTERS, 1)
        at = 1 - (place + 0.5) / (SHOWN + 1)
        axis.text(0.01, at, said, color=colour, fontsize=9, va="center", transform=axis.transAxes)


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    """At most `lines` lines; what is left out is told by dots."""
    return textwrap.wrap(plain(visible(text)), width, max_lines=lines, placeholder=" …") or [""]
