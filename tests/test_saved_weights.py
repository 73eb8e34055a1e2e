"""No adapter and no model that lacks a tensor, or a part of one, becomes a checkpoint or a result."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_trainer
from safetensors.torch import load_file, save_file
from torch import nn

from sarlang_sft.arguments import DataArguments
from sarlang_sft.fsdp import check_sharded
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.saved_weights import check_saved
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TuningArguments

WAYS = [("adapter_model.safetensors", "lora"), ("model.safetensors", "full")]
Tensors = dict[str, torch.Tensor]


def lose_one(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[1:])


def empty_one(tensors: Tensors) -> Tensors:
    name = min(tensors)
    return {**tensors, name: tensors[name].new_empty(0)}


def cut_one(tensors: Tensors) -> Tensors:
    name = max(tensors, key=lambda key: tensors[key].dim())
    return {**tensors, name: tensors[name][: len(tensors[name]) // 2].clone()}


def rename_one(tensors: Tensors) -> Tensors:
    return {f"model.{name}" if name == min(tensors) else name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("name", "tuning"), WAYS)
@pytest.mark.parametrize("damage", [lambda tensors: {}, lose_one, empty_one, cut_one, rename_one])
def test_what_was_not_saved_in_full_is_found(
    name: str, tuning: str, damage: Callable[[Tensors], Tensors], tiny: Path, data: Path, tmp_path: Path
) -> None:
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(tuning=tuning))
    trainer.save_model(str(tmp_path / "saved"))
    check_saved(tmp_path / "saved", trainer.model)
    save_file(damage(load_file(tmp_path / "saved" / name)), tmp_path / "saved" / name, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"saved: \d+ tensors were not saved in full \(such as "):
        check_saved(tmp_path / "saved", trainer.model)


@pytest.mark.parametrize(("name", "tuning"), WAYS)
def test_a_save_that_gathered_nothing_leaves_neither_a_checkpoint_nor_a_result(
    name: str, tuning: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    """As ZeRO-3 saved adapters of 40 bytes (trl#4416)."""
    steps = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(tuning=tuning), **steps)

    def save_nothing(folder: str, state_dict: Tensors | None = None) -> None:
        RunTrainer._save(trainer, folder, {})

    trainer._save = save_nothing
    with pytest.raises(RuntimeError, match="were not saved in full"):
        trainer.train()
    with pytest.raises(RuntimeError, match="were not saved in full"):
        save_result(trainer, DataArguments(str(data)), {})
    assert not list(tmp_path.glob("*checkpoint-*")) and not (tmp_path / name).exists()
    assert trainer.run.folder == tmp_path and "finished" not in (tmp_path / "run.json").read_text()
    shutil.rmtree(tmp_path / ".result.part")


def test_a_model_that_is_not_cut_is_not_taken_for_fsdp() -> None:
    with pytest.raises(RuntimeError, match=r"fsdp: 2 parameters are not cut among the ranks \(such as weight\)"):
        check_sharded(nn.Linear(2, 2))
