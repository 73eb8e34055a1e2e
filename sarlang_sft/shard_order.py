"""The plan of a training from shards: every rank reads its own shards, some of them at a time.

In every epoch the shards are permuted and dealt to the ranks. Each rank's part is cut into windows of some shards, and
rows are packed and mixed within a window. What a rank has more of than another is carried to its next window, so that
ranks stay side by side and every dialogue comes once. The plan is a list of rows as any other: a position in it is all
that a resumed run needs.
"""

from dataclasses import dataclass

import numpy as np

from sarlang_sft.errors import InputError
from sarlang_sft.lengths import Lengths
from sarlang_sft.mixture import Mixture
from sarlang_sft.packing import Layout, LeftOut, Row, Tree, draw_trees, fill_to, pack, tokens_of, weigh

Windows = list[list[list[Row]]]  # of each window, of each rank, its rows


@dataclass(frozen=True)
class Dealing:
    """Who reads what.

    Attributes:
        shard: (D,) number of the shard that each dialogue's first image lies in; -1 where it lies in none, which may
            go to any rank.
        ranks: How many there are.
        batch: Rows of a rank's batch; a rank's rows of one step are `Layout.rows_per_step // ranks`.
        window: Shards that a rank mixes with each other.
    """

    shard: np.ndarray
    ranks: int
    batch: int
    window: int


def plan_shard_epochs(
    mixture: Mixture, lengths: Lengths, left_out: list[LeftOut], layout: Layout, seed: int, epochs: int,
    dealing: Dealing,
) -> list[list[Row]]:  # fmt: skip
    """The rows of every epoch as `packing.plan_epochs` gives them, rank by rank within each step.

    Raises:
        InputError: There are fewer shards than ranks, or what `packing.plan_epochs` raises.
    """
    drawn = draw_trees(mixture, lengths, left_out, layout, seed, epochs)
    dealt = [_deal(trees, lengths, layout, dealing, rng) for rng, trees in drawn]
    own = layout.rows_per_step // dealing.ranks
    longest = max(sum(map(len, rows)) for windows in dealt for rows in zip(*windows, strict=True))
    steps = -(-longest // own)
    return [
        _arrange(windows, steps, lengths, layout, dealing, rng) for windows, (rng, _) in zip(dealt, drawn, strict=True)
    ]


def describe_dealing(epochs: list[list[Row]], dealing: Dealing) -> str:
    """How an epoch's shards and dialogues fall to the ranks, in one line."""
    rank = np.arange(len(epochs[0])) // dealing.batch % dealing.ranks
    dialogues = np.bincount(rank, [sum(map(len, row)) for row in epochs[0]]).astype(int)
    numbers = np.concatenate([tree for row in epochs[0] for tree in row])
    shards = np.unique(dealing.shard[numbers])
    twice = len(numbers) - len(np.unique(numbers))
    again = f"; {twice:,} dialogues come again to fill steps" if twice else ""
    return (
        f"shards: {np.count_nonzero(shards >= 0):,} for {dealing.ranks} ranks, each mixes {dealing.window} at a time; "
        f"{dialogues.min():,} to {dialogues.max():,} dialogues in {len(epochs[0]) // dealing.ranks:,} rows of a rank"
        f"{again}"
    )


def _deal(trees: list[Tree], lengths: Lengths, layout: Layout, dealing: Dealing, rng: np.random.Generator) -> Windows:
    """The packed rows of every window and rank.

    Each shard goes to the rank with the fewest tokens so far, and so does each tree without a shard.
    """
    shard = dealing.shard[[tree[0] for tree in trees]]
    tokens = np.array([tokens_of(tree, lengths) for tree in trees], dtype=np.int64)
    present, place = np.unique(shard, return_inverse=True)
    if np.count_nonzero(present >= 0) < dealing.ranks:
        raise InputError(
            f"data: {np.count_nonzero(present >= 0)} shards for {dealing.ranks} ranks; write smaller ones with "
            "data_prep/write_shards.py --shard_mb (20 or more for every rank), or start fewer processes"
        )
    load = np.bincount(place, tokens)
    taken = np.zeros(dealing.ranks)
    own: list[list[int]] = [[] for _ in range(dealing.ranks)]  # places in `present`
    for one in rng.permutation(np.flatnonzero(present >= 0)).tolist():
        rank = int(np.argmin(taken))
        own[rank].append(one)
        taken[rank] += load[one]
    count = -(-max(map(len, own)) // dealing.window)
    # (window, rank) of every tree, by way of its shard
    cell = np.full((len(present), 2), -1)
    for rank, shards in enumerate(own):
        for window, part in enumerate(np.array_split(shards, count)):
            cell[part] = window, rank
    cells = cell[place]
    for number, tree in enumerate(rng.permutation(np.flatnonzero(shard < 0)).tolist()):
        rank = int(np.argmin(taken))
        taken[rank] += tokens[tree]
        cells[tree] = number % count, rank
    groups: list[list[list[Tree]]] = [[[] for _ in range(dealing.ranks)] for _ in range(count)]
    for (window, rank), tree in zip(cells.tolist(), trees, strict=True):
        groups[window][rank].append(tree)
    return [[pack(group, lengths, layout, rng) for group in ranks] for ranks in groups]


def _arrange(
    windows: Windows, steps: int, lengths: Lengths, layout: Layout, dealing: Dealing, rng: np.random.Generator
) -> list[Row]:
    """The rows in the order of training: as many of every rank in every step, of about the same weight."""
    own = layout.rows_per_step // dealing.ranks
    carried: list[list[Row]] = [[] for _ in range(dealing.ranks)]
    arranged: list[Row] = []
    left = steps
    for number, ranks in enumerate(windows):
        pools = [[*old, *_shuffled(new, rng)] for old, new in zip(carried, ranks, strict=True)]
        if number == len(windows) - 1:
            now = left
            pools = [fill_to(pool, now * own, layout) for pool in pools]
        else:
            now = min(map(len, pools)) // own
        left -= now
        carried = [pool[now * own :] for pool in pools]
        arranged += _steps([pool[: now * own] for pool in pools], own, lengths, layout, dealing, rng)
    return arranged


def _steps(
    pools: list[list[Row]], own: int, lengths: Lengths, layout: Layout, dealing: Dealing, rng: np.random.Generator
) -> list[Row]:
    """The rows of a window; each rank's are sorted and cut into steps, which are shuffled together."""
    ordered = []
    for pool in pools:
        weight = weigh(pool, lengths, layout, rng)
        ordered.append([pool[place] for place in sorted(range(len(pool)), key=weight.__getitem__)])
    rows: list[Row] = []
    for step in rng.permutation(len(ordered[0]) // own).tolist():
        for start in range(step * own, (step + 1) * own, dealing.batch):
            rows += [row for rank in ordered for row in rank[start : start + dealing.batch]]
    return rows


def _shuffled(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    return [rows[place] for place in rng.permutation(len(rows))]
