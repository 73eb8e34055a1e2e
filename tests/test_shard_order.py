"""The order of a training from shards: all of it once, by ranks that never share a shard, some shards at a time."""

from dataclasses import replace

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from test_packing import Everything, flatten, make_lengths
from torch.utils.data import BatchSampler, SequentialSampler

from sarlang_sft.errors import InputError
from sarlang_sft.packing import Layout, Row, find_left_out, plan_epochs, tokens_of
from sarlang_sft.shard_order import Dealing, describe_dealing, plan_shard_epochs

LENGTHS = make_lengths(images=600)


def deal(ranks: int, batch: int, shards: int = 60, window: int = 3, loose: int = 0) -> Dealing:
    """Images dealt to shards in stored order; every `loose`-th lies in none."""
    shard = LENGTHS.record * shards // 600
    return Dealing(np.where(loose and LENGTHS.record % max(loose, 1) == 0, -1, shard), ranks, batch, window)


def plan(layout: Layout, dealing: Dealing, seed: int = 0, epochs: int = 1) -> list[list[Row]]:
    left_out = find_left_out(LENGTHS, layout)
    return plan_shard_epochs(Everything(LENGTHS, None), LENGTHS, left_out, layout, seed, epochs, dealing)


def rows_of_ranks(rows: list[Row], dealing: Dealing) -> list[list[Row]]:
    """What each rank gets of an epoch from the trainer's data loader."""
    sampler = BatchSampler(SequentialSampler(rows), dealing.batch, drop_last=False)
    ranks = [BatchSamplerShard(sampler, dealing.ranks, rank) for rank in range(dealing.ranks)]
    return [[rows[place] for batch in rank for place in batch] for rank in ranks]


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize(("ranks", "batch", "accumulation"), [(1, 1, 4), (3, 2, 2), (4, 1, 3)])
def test_every_epoch_takes_every_dialogue_once_and_no_two_ranks_read_the_same_shard(
    ranks: int, batch: int, accumulation: int, trees: bool
) -> None:
    dealing = deal(ranks, batch)
    layout = Layout(trees, 1024, None, ranks * batch * accumulation)
    epochs = plan(layout, dealing, seed=1, epochs=3)
    shares = []
    for rows in epochs:
        assert set(flatten(rows)) == set(range(len(LENGTHS.record))) and len(rows) % layout.rows_per_step == 0
        assert not trees or len(flatten(rows)) == len(LENGTHS.record)
        of_ranks = rows_of_ranks(rows, dealing)
        assert len({len(own) for own in of_ranks}) == 1
        shards = [set(dealing.shard[flatten(own)]) for own in of_ranks]
        assert sum(map(len, shards)) == len(set().union(*shards)) == 60
        shares.append(shards)
    assert flatten(epochs[0]) != flatten(epochs[1]) and len({len(rows) for rows in epochs}) == 1
    assert ranks == 1 or shares[0] != shares[1], "other shards for a rank in every epoch"
    again = plan(layout, dealing, seed=1, epochs=3)
    assert [flatten(rows) for rows in again] == [flatten(rows) for rows in epochs]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("trees", [True, False])
def test_a_rank_needs_few_shards_at_once(trees: bool, alike: bool) -> None:
    dealing = deal(ranks=3, batch=2)
    if not alike:  # a third of all lies in one shard
        dealing = replace(dealing, shard=np.maximum(dealing.shard, 20))
    [rows] = plan(Layout(trees, 1024, None, 12), dealing)
    for own in rows_of_ranks(rows, dealing):
        used = [set(dealing.shard[flatten([row])]) for row in own]
        spans = {one: [place for place, shards in enumerate(used) if one in shards] for one in set().union(*used)}
        at_once = [sum(span[0] <= place <= span[-1] for span in spans.values()) for place in range(len(own))]
        assert max(at_once) <= 2 * dealing.window, "those of its window, and those that it has carried over"


def test_rows_are_full_and_those_of_a_step_weigh_about_the_same_as_without_shards() -> None:
    layout, dealing = Layout(True, 1024, None, 12), deal(ranks=3, batch=2)

    def figures(rows: list[Row]) -> tuple[float, float]:
        visual = np.array([sum(LENGTHS.visual[tree[0]] for tree in row) for row in rows])
        tokens = [sum(tokens_of(tree, LENGTHS) for tree in row) for row in rows]
        return float(np.mean(tokens)), float(visual.reshape(-1, 12).std(axis=1).mean() / visual.std())

    by_shards = figures(plan(layout, dealing)[0])
    left_out = find_left_out(LENGTHS, layout)
    anyhow = figures(plan_epochs(Everything(LENGTHS, None), LENGTHS, left_out, layout, 0, 1)[0])
    assert by_shards[0] > 0.9 * anyhow[0] and by_shards[1] < 0.4


def test_images_that_lie_in_no_shard_go_to_any_rank() -> None:
    dealing, layout = deal(ranks=4, batch=1, loose=3), Layout(True, 1024, None, 8)
    [rows] = plan(layout, dealing)
    assert sorted(flatten(rows)) == list(range(len(LENGTHS.record)))
    loose = [np.count_nonzero(dealing.shard[flatten(own)] < 0) for own in rows_of_ranks(rows, dealing)]
    assert min(loose) > 0.5 * max(loose)


def test_the_remainder_is_said_and_too_few_shards_are_refused() -> None:
    layout = Layout(False, 1024, None, 16)
    epochs = plan(layout, deal(4, 4, shards=5))
    line = describe_dealing(epochs, deal(4, 4, shards=5))
    again = len(epochs[0]) - len(LENGTHS.record)
    assert again > 0 and f"; {again:,} dialogues come again" in line and "shards: 5 for 4 ranks" in line
    assert "again" not in describe_dealing(plan(Layout(True, 1024, None, 16), deal(4, 4)), deal(4, 4))
    with pytest.raises(InputError, match=r"data: 3 shards for 4 ranks; write smaller ones with .*--shard_mb"):
        plan(layout, deal(4, 4, shards=3))
