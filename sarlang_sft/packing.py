"""Which dialogues share a row and which rows share a step: the plan of a whole training, from token counts alone.

The plan is a function of the data, the options and the seed, so that a resumed run continues it at any step. One step
of the optimiser is a group of rows of about equal weight in visual and in total tokens, whichever rank takes them.
"""

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from torch.utils.data import Dataset

from sarlang_sft.errors import InputError
from sarlang_sft.lengths import Lengths
from sarlang_sft.mixture import Draw, Mixture
from sarlang_sft.whole_output import whole_file

Tree = np.ndarray  # (K,) row numbers of the dialogues of one image
Row = list[Tree]
WINDOW = 2048  # trees that are packed together: far more than share a row, far fewer than an epoch
FLAT_LOOSENESS = 0.5  # octaves of length that count as alike


@dataclass(frozen=True)
class LeftOut:
    """A dialogue that no row can hold, and why."""

    dialogue: int
    reason: str


@dataclass(frozen=True)
class Layout:
    """How dialogues are laid out.

    Attributes:
        trees: Dialogues of an image share its tokens; False makes every dialogue a row of its own.
        row_tokens: At most this many tokens in a row of trees.
        turns_per_image: At most this many dialogues of an image per visit, drawn anew every epoch; None means all.
        rows_per_step: Rows of one step of the optimiser over all ranks.
        shuffle: False shuffles nothing and fills no step (evaluation).
        context: Tokens of the longest sequence that the model takes; None means any.
    """

    trees: bool
    row_tokens: int
    turns_per_image: int | None
    rows_per_step: int
    shuffle: bool = True
    context: int | None = None


def find_left_out(lengths: Lengths, layout: Layout) -> list[LeftOut]:
    """Dialogues without an answer, longer than the model's context, or, in trees, longer than a row."""
    found = [LeftOut(row, "no answer") for row in np.flatnonzero(~lengths.answered).tolist()]
    fits = lengths.answered & (lengths.whole <= (layout.context or np.inf))
    too_long = np.flatnonzero(lengths.answered & ~fits).tolist()
    found += [LeftOut(row, "longer than the model's context") for row in too_long]
    if layout.trees:
        for row in np.flatnonzero(fits & (lengths.whole > layout.row_tokens)).tolist():
            alone = lengths.trunk[row] > layout.row_tokens
            found.append(LeftOut(row, "image longer than a row" if alone else "dialogue longer than a row"))
    return found


def make_trees(draw: Draw, lengths: Lengths, layout: Layout, rng: np.random.Generator) -> list[Tree]:
    """Group what an epoch drew by image; images with more dialogues than a row holds become several trees."""
    order = rng.permutation(len(draw.dialogue)) if layout.shuffle else np.arange(len(draw.dialogue))
    dialogue, visit = draw.dialogue[order], draw.visit[order]
    record = lengths.record[dialogue]
    by_image = np.lexsort((visit, record))  # stable: dialogues of an image stay in their shuffled order
    changes = np.flatnonzero(np.diff(record[by_image]) | np.diff(visit[by_image])) + 1
    trees: list[Tree] = []
    for group in np.split(dialogue[by_image], changes):
        group = group[: layout.turns_per_image]
        if not layout.trees:
            trees += [group[place : place + 1] for place in range(len(group))]
            continue
        filled = lengths.trunk[group[0]] + np.cumsum(lengths.branch[group])
        begin = 0
        while filled[-1] > layout.row_tokens:
            cut = begin + max(1, int(np.searchsorted(filled[begin:], layout.row_tokens, side="right")))
            trees.append(group[begin:cut])
            filled = filled - lengths.branch[group[begin:cut]].sum()
            begin = cut
        trees.append(group[begin:])
    return trees


def tokens_of(tree: Tree, lengths: Lengths) -> int:
    """Upper bound of a tree's tokens: what its dialogues share behind the images is counted once for each."""
    return int(lengths.trunk[tree[0]] + lengths.branch[tree].sum())


def pack(trees: list[Tree], lengths: Lengths, layout: Layout, rng: np.random.Generator) -> list[Row]:
    """Trees to rows of at most `row_tokens`: best fit of the longest first, within windows of the shuffled order."""
    order = rng.permutation(len(trees)) if layout.shuffle else np.arange(len(trees))
    if not layout.trees:
        return [[trees[number]] for number in order]
    rows: list[Row] = []
    for start in range(0, len(order), WINDOW):
        window = [(tokens_of(trees[number], lengths), trees[number]) for number in order[start : start + WINDOW]]
        room: list[tuple[int, int]] = []  # (tokens left, number of the row), ascending
        for tokens, tree in sorted(window, key=lambda item: -item[0]):
            place = bisect_left(room, (tokens, -1))
            if place == len(room):
                rows.append([tree])
                insort(room, (layout.row_tokens - tokens, len(rows) - 1))
            else:
                left, row = room.pop(place)
                rows[row].append(tree)
                insort(room, (left - tokens, row))
    return rows


def fill_to(rows: list[Row], count: int, layout: Layout) -> list[Row]:
    """Bring an epoch to `count` rows, so that no step is short of them.

    Trees: rows with most dialogues are halved. Flat: the first rows come twice.
    """
    if not layout.trees:
        return [rows[number % len(rows)] for number in range(count)]
    rows = sorted(rows, key=lambda row: sum(map(len, row)))
    while len(rows) < count:
        row = rows.pop()
        if len(row) > 1:
            halves = [row[: len(row) // 2], row[len(row) // 2 :]]
        elif len(row[0]) > 1:
            halves = [[row[0][: len(row[0]) // 2]], [row[0][len(row[0]) // 2 :]]]
        else:  # every row is down to one dialogue: the first ones come twice
            return [[*rows, row][number % (len(rows) + 1)] for number in range(count)]
        for half in halves:
            insort(rows, half, key=lambda row: sum(map(len, row)))
    return rows


def weigh(rows: list[Row], lengths: Lengths, layout: Layout, rng: np.random.Generator) -> list[Any]:
    """What rows are sorted by, so that neighbours cost about the same: visual, then total tokens.

    Flat rows are sorted loosely: answers of one length are often of one kind, and steps that hold one class each teach
    badly.
    """
    total = [sum(tokens_of(tree, lengths) for tree in row) for row in rows]
    if not layout.trees:
        return (np.log2(total) + rng.uniform(0, FLAT_LOOSENESS, len(rows))).tolist()
    visual = [sum(int(lengths.visual[tree[0]]) for tree in row) for row in rows]
    return list(zip(visual, total, strict=True))


def arrange(rows: list[Row], lengths: Lengths, layout: Layout, rng: np.random.Generator) -> list[Row]:
    """Order rows so that those of one step resemble each other in visual and in total tokens.

    Rows are sorted within windows of the shuffled order, cut into steps, and the steps shuffled.
    """
    order, weight = rng.permutation(len(rows)), weigh(rows, lengths, layout, rng)
    steps: list[list[int]] = []
    size = layout.rows_per_step
    window = size * max(1, WINDOW // size)
    for start in range(0, len(order), window):
        ordered = sorted(order[start : start + window].tolist(), key=lambda number: weight[number])
        steps += [ordered[place : place + size] for place in range(0, len(ordered), size)]
    return [rows[number] for step in rng.permutation(len(steps)) for number in steps[step]]


HINTS = {
    "no answer": "its answers are empty",
    "no box of this number": "a text names a box that its record has not",
    "box outside the picture": "the processor or image_ops cut it off",
    "longer than the model's context": "lower max_pixels, or a resize in image_ops",
    "image longer than a row": "raise max_tokens_per_row, or lower max_pixels where the family has it",
    "dialogue longer than a row": "raise max_tokens_per_row",
}


def draw_trees(
    mixture: Mixture, lengths: Lengths, left_out: list[LeftOut], layout: Layout, seed: int, epochs: int
) -> list[tuple[np.random.Generator, list[Tree]]]:
    """What every epoch draws, as trees, and the generator to go on with; for the rest see [`plan_epochs`]."""
    usable = np.ones(len(lengths.record), dtype=bool)
    usable[[item.dialogue for item in left_out]] = False
    if not usable.any():
        reasons = Counter(item.reason for item in left_out)
        listed = "; ".join(f"{count} {reason} ({HINTS[reason]})" for reason, count in reasons.items())
        raise InputError(f"data: every dialogue is left out: {listed}")
    drawn = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        draw = mixture.draw(rng, usable)
        if len(draw.dialogue) == 0:
            raise InputError("data: weights and caps leave no dialogue in an epoch; raise them")
        trees = make_trees(draw, lengths, layout, rng)
        if layout.shuffle and sum(map(len, trees)) < layout.rows_per_step:
            raise InputError(
                f"data: too few dialogues for a step of {layout.rows_per_step} rows; lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        drawn.append((rng, trees))
    return drawn


def plan_epochs(
    mixture: Mixture, lengths: Lengths, left_out: list[LeftOut], layout: Layout, seed: int, epochs: int
) -> list[list[Row]]:
    """The rows of every epoch, in the order of training; every epoch has the same number of them and fills its steps.

    Args:
        left_out: What [`find_left_out`] found.

    Raises:
        InputError: Nothing is left to learn from, or too little for a step.
    """
    drawn = draw_trees(mixture, lengths, left_out, layout, seed, epochs)
    packed = [pack(trees, lengths, layout, rng) for rng, trees in drawn]
    rngs = [rng for rng, _ in drawn]
    if not layout.shuffle:
        return packed
    count = -(-max(map(len, packed)) // layout.rows_per_step) * layout.rows_per_step
    filled = [fill_to(rows, count, layout) for rows in packed]
    return [arrange(rows, lengths, layout, rng) for rows, rng in zip(filled, rngs, strict=True)]


class PlannedRows(Dataset):
    """The rows of all epochs as what the collators take: a dialogue (flat), or a list of trees.

    A dialogue is a row of the table with `draw` added, four numbers that seed the augmentation of its tree: they name
    its place in the plan, so that it is augmented alike by any worker or rank, and in a resumed run.

    Accelerate calls `set_epoch` before each epoch, in resumed runs too; loader processes start after it.

    Args:
        seed: Of the plan.
        ahead: Told of every row that is read (the rows of its epoch, and its place there), to fetch what comes next.
    """

    def __init__(
        self,
        table: pa.Table,
        epochs: list[list[Row]],
        trees: bool,
        seed: int = 0,
        ahead: Callable[[list[Row], int], None] | None = None,
    ) -> None:
        self.dialogues = datasets.Dataset(InMemoryTable(table))
        self.epochs = epochs
        self.trees = trees
        self.seed = seed
        self.ahead = ahead
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; epochs beyond the plan take its rows anew, augmented otherwise."""
        self.epoch = epoch

    def __getstate__(self) -> dict[str, Any]:
        """What a loader worker, which ends with its epoch, needs of it."""
        return self.__dict__ | {"epochs": [self._rows()]}

    def _rows(self) -> list[Row]:
        return self.epochs[self.epoch % len(self.epochs)]

    def __len__(self) -> int:
        return len(self._rows())

    def __getitem__(self, index: int) -> Any:
        row = self._rows()[index]
        if self.ahead:
            self.ahead(self._rows(), index)
        columns = self.dialogues[np.concatenate(row).tolist()]
        dialogues = iter([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        # Trees count from 1: zeros at the end change no generator, and [seed, epoch] alone draws the plan.
        draws = [[self.seed, self.epoch, index, number] for number in range(1, len(row) + 1)]
        trees = [[next(dialogues) | {"draw": draw} for _ in tree] for tree, draw in zip(row, draws, strict=True)]
        return trees if self.trees else trees[0][0]


def describe_left_out(left_out: list[LeftOut], table: pa.Table) -> list[str]:
    """One line per reason, with the count and the first images' names."""
    lines = []
    for reason, count in Counter(item.reason for item in left_out).items():
        rows = [item.dialogue for item in left_out if item.reason == reason][:3]
        names = [", ".join(table["images"][row].as_py()) or table["id"][row].as_py() for row in rows]
        lines.append(f"left out: {reason} {count:,} (such as {'; '.join(dict.fromkeys(names))})")
    return lines


def describe_plan(epochs: list[list[Row]], lengths: Lengths, layout: Layout) -> str:
    """What an epoch consists of, in one line."""
    rows = epochs[0]
    dialogues = sum(len(tree) for row in rows for tree in row)
    if not layout.trees:
        return f"flat: {dialogues:,} dialogues, one per row, {layout.rows_per_step} rows per step"
    trees = sum(len(row) for row in rows)
    tokens = sum(tokens_of(tree, lengths) for row in rows for tree in row)
    separate = sum(int(lengths.whole[tree].sum()) for row in rows for tree in row)
    return (
        f"image trees: {dialogues:,} dialogues on {trees:,} trees in {len(rows):,} rows "
        f"({tokens / len(rows):,.0f} of at most {layout.row_tokens:,} tokens), {layout.rows_per_step} rows and "
        f"{dialogues * layout.rows_per_step / len(rows):,.1f} dialogues per step; "
        f"{separate / tokens:.2f} times fewer tokens than one by one"
    )


def write_left_out(path: Path, left_out: list[LeftOut], table: pa.Table) -> None:
    """One JSON line per dialogue that is left out: `id, images, reason`; no file if there is none."""
    path.unlink(missing_ok=True)
    if left_out:
        lines = [
            {
                "id": table["id"][item.dialogue].as_py(),
                "images": table["images"][item.dialogue].as_py(),
                "reason": item.reason,
            }
            for item in left_out
        ]
        with whole_file(path) as file:
            file.writelines((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines)
