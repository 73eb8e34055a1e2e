"""What an image is moved by belongs to its place in the plan, not to the process that reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_trainer
from torch.utils.data import DataLoader

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.packing import PlannedRows, Row
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments

OPS = ["shift:9"]


def make_rows(data: Path, epochs: list[list[Row]], trees: bool, seed: int = 0) -> PlannedRows:
    return PlannedRows(read_mixture([DataSource(str(data))], "train"), epochs, trees, seed)


def pixels(model: Path, rows: PlannedRows, epoch: int, workers: int = 0) -> list[torch.Tensor]:
    """The picture tensors of an epoch's rows, one batch each."""
    backbone = BACKBONES["qwen2_5_vl"]
    kind = TreeCollator if rows.trees else DialogueCollator
    collator = kind(load_processor(str(model), backbone), backbone, OPS)
    rows.set_epoch(epoch)
    return [batch["pixel_values"] for batch in DataLoader(rows, 1, collate_fn=collator, num_workers=workers)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(some, others, strict=True)]


@pytest.mark.parametrize("trees", [True, False])
def test_pixels_depend_on_the_place_in_the_plan_alone(trees: bool, tiny: Path, data: Path) -> None:
    epoch = [[np.array([0])], [np.array([9])], [np.array([0])], [np.array([18])]]
    rows = make_rows(data, [epoch, epoch], trees)
    first = pixels(tiny, rows, 0)
    torch.manual_seed(5)
    assert all(same(first, pixels(tiny, rows, 0, workers=2)))
    assert not torch.equal(first[0], first[2]), "two visits of one image are moved alike"
    # the third epoch goes through the rows of the first again
    for other in (pixels(tiny, rows, 1), pixels(tiny, rows, 2), pixels(tiny, make_rows(data, [epoch], trees, 1), 0)):
        assert not any(same(first, other))


def test_trees_of_a_row_are_moved_apart_and_dialogues_of_a_tree_together(data: Path) -> None:
    rows = make_rows(data, [[[np.array([0, 1]), np.array([0, 1])]]], True)
    first, second = rows[0]
    assert first[0]["draw"] == first[1]["draw"] and second[0]["draw"] == second[1]["draw"]
    seeds = [first[0]["draw"], second[0]["draw"], [rows.seed, rows.epoch]]  # the last draws the plan
    assert len({np.random.default_rng(seed).bytes(8) for seed in seeds}) == 3


def test_collation_leaves_torchs_generator_alone(tiny: Path, data: Path) -> None:
    backbone = BACKBONES["qwen2_5_vl"]
    rows = make_rows(data, [[[np.array([0, 1])]]], True)
    before = torch.get_rng_state()
    TreeCollator(load_processor(str(tiny), backbone), backbone, OPS)([rows[0]])
    assert torch.equal(before, torch.get_rng_state())


def test_a_resumed_run_sees_the_pixels_of_the_uninterrupted_one(tiny: Path, data: Path, tmp_path: Path) -> None:
    def train(out: Path, resume: str = "auto", **options: object) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        trainer, _ = make_trainer(
            tiny, data, tmp_path / out, TuningArguments(), max_steps=7, save_strategy="steps", save_steps=5,
            image_ops=OPS, turns_per_image=2, per_device_train_batch_size=4, resume=resume,
            **options,
        )  # fmt: skip
        trainer.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
        )
        assert len(trainer.train_dataset) // 4 < 5, "the run must be resumed in a later epoch"
        trainer.train()
        return seen

    whole = train(tmp_path / "whole")
    assert len(whole) == 7
    assert all(same(whole, train(tmp_path / "workers", dataloader_num_workers=2)))
    assert all(same(whole[5:], train(tmp_path / "resumed", str(tmp_path / "whole/checkpoint-5"))))
