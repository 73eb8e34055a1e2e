"""Draw docs/image_trees.png: an image tree and its attention mask beside the separate samples it stands for.

python docs/draw_image_trees.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from sarlang_sft.attention import dense_mask

TRUNK, BRANCHES = 10, (5, 4, 6)  # tokens; a real trunk has hundreds
COLOURS = ("#5b6b7f", "#d1495b", "#2e86ab", "#edae49")
NAMES = ("image", "How many ships?  2.", "Is there a car?  No.", "Where are most ships?  Top.")


def bar(axes: plt.Axes, start: float, row: float, segments: list[tuple[int, int]]) -> None:
    """Tokens as boxes: (branch, number of them) after each other."""
    for branch, tokens in segments:
        for _ in range(tokens):
            axes.add_patch(Rectangle((start, row), 0.9, 0.8, color=COLOURS[branch]))
            start += 1


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1.35, 1))
    left.text(0, 9.3, "separate samples: the image is encoded for every question", fontsize=10)
    for number, tokens in enumerate(BRANCHES, start=1):
        bar(left, 0, 9 - 1.2 * number, [(0, TRUNK), (number, tokens)])
    left.text(0, 3.8, "image tree: encoded once, the questions branch off", fontsize=10)
    bar(left, 0, 2.3, [(0, TRUNK), *enumerate(BRANCHES, start=1)])
    starts = np.cumsum([0, TRUNK, *BRANCHES])
    for start, name, colour in zip(starts, NAMES, COLOURS, strict=False):
        left.text(start + 0.2, 1.7, name, fontsize=8, color=colour, rotation=-28, va="top")
    left.set(xlim=(-0.5, sum(BRANCHES) + TRUNK + 1), ylim=(-2.6, 10.3))
    left.axis("off")

    branch = torch.cat([torch.full((n,), number) for number, n in enumerate((TRUNK, *BRANCHES))])
    mask = dense_mask(torch.stack([torch.zeros_like(branch), branch], dim=-1)[None])[0, 0].numpy()
    picture = np.ones((*mask.shape, 3))
    for query, key in zip(*mask.nonzero(), strict=True):
        colour = COLOURS[int(branch[key])]
        picture[query, key] = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    right.imshow(picture)
    for place in starts[1:-1] - 0.5:
        right.axhline(place, color="#cccccc", linewidth=0.6)
        right.axvline(place, color="#cccccc", linewidth=0.6)
    right.set(title="which token (row) sees which (column)", xticks=[], yticks=[])
    right.title.set_fontsize(10)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png").with_stem("image_trees"), dpi=110)


if __name__ == "__main__":
    main()
