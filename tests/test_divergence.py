"""Numbers that are none stop a training before a checkpoint keeps them."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_trainer, run_script
from torch import nn

from sarlang_sft.arguments import DataArguments, TrainArguments
from sarlang_sft.checkpoints import list_checkpoints
from sarlang_sft.divergence import Diverged, find_diverged, stop_diverged
from sarlang_sft.errors import InputError
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TuningArguments

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "max_steps": 4}


def steps_kept(out: Path) -> list[str]:
    return [folder.name for folder in list_checkpoints(out)]


def images_of(trainer: RunTrainer, rows: range) -> list[str]:
    return [tree[0]["images"][0] for row in rows for tree in trainer.train_dataset[row]]


def test_a_learning_rate_that_explodes_stops_at_the_first_loss_that_is_no_number(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(), learning_rate=1e30, **EVERY_STEP)
    with pytest.raises(InputError, match=r"step 2, rank 0: the loss is nan\. Its images here: ") as stopped:
        trainer.train()
    message = str(stopped.value)
    assert steps_kept(tmp_path) == ["checkpoint-1"]
    assert f"The last complete checkpoint is {tmp_path / 'checkpoint-1'}. " in message
    assert "max_grad_norm (now 1.0)" in message and "learning_rate (now 1e+30)" in message
    assert f"Its images here: {', '.join(images_of(trainer, range(1, 2)))}. " in message
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history)


def test_weights_that_are_no_numbers_reach_no_checkpoint_and_no_result(tiny: Path, data: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tiny, data, tmp_path / "kept", TuningArguments(), learning_rate=1e39, **EVERY_STEP)
    with pytest.raises(InputError, match=r"step 1, rank 0: the weights are no numbers.* There is no complete"):
        trainer.train()
    assert steps_kept(tmp_path / "kept") == []
    trainer, _ = make_trainer(tiny, data, tmp_path / "end", TuningArguments(), learning_rate=1e39, max_steps=1)
    result = trainer.train()
    with pytest.raises(InputError, match="the weights are no numbers"):
        save_result(trainer, DataArguments(str(data)), result.metrics)
    assert not (tmp_path / "end/adapter_model.safetensors").exists()


def test_only_the_batch_whose_loss_is_no_number_is_named(tiny: Path, data: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(), gradient_accumulation_steps=3, **EVERY_STEP)
    seen = 0

    def poison(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return output * float("nan") if seen == 5 else output

    trainer.model.get_input_embeddings().register_forward_hook(poison)
    with pytest.raises(InputError) as stopped:
        trainer.train()
    assert f"step 2, rank 0: the loss is nan. Its images here: {', '.join(images_of(trainer, range(4, 5)))}. " in str(
        stopped.value
    )


def test_a_gradient_that_is_no_number_stops_before_the_weights_move(tiny: Path, data: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(), **EVERY_STEP)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in trained]
    trained[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InputError, match="step 1, rank 0: the gradient is nan, though the loss of this rank is a num"):
        trainer.train()
    assert all(torch.equal(weight, start) for weight, start in zip(trained, before, strict=True))


def test_what_is_looked_at() -> None:
    one, nothing = torch.tensor(1.0), torch.tensor(float("nan"))
    images = [["a.png"], ["b.png"]]
    assert find_diverged([one, one], torch.tensor(3.0), images) is None
    assert find_diverged([one, one], 3.0, images) is None
    assert find_diverged([one, one], None, images) is None, "the gradient under fp16"
    assert find_diverged([one, one], float("inf"), images).images == images
    assert find_diverged([one, nothing], 3.0, images) == Diverged("the loss is nan", [["b.png"]])


def test_a_long_list_of_images_is_cut(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(25)]
    args = TrainArguments(output_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"images here: 0\.png, .*, 9\.png and 15 more\. There is no complete"):
        stop_diverged(Diverged("the loss is nan", [names[:20], names]), 1, args)
    with pytest.raises(InputError, match=r"the loss is nan\. There is no complete checkpoint"):
        stop_diverged(Diverged("the loss is nan", [[]]), 1, args)


def test_the_filter_that_hides_such_losses_is_refused(tmp_path: Path) -> None:
    assert not TrainArguments(output_dir=str(tmp_path)).logging_nan_inf_filter
    with pytest.raises(InputError, match="logging_nan_inf_filter True: must stay False: it hides a loss"):
        TrainArguments(output_dir=str(tmp_path), logging_nan_inf_filter=True)


@pytest.mark.parametrize("mode", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_the_rank_that_has_it_names_its_images_and_no_checkpoint_follows(
    mode: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    if mode != "ddp" and not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler: DeepSpeed compiles its CPU communication kernels")
    options = ["--deepspeed", ROOT / f"deepspeed_configs/{mode}.json"] if mode != "ddp" else []
    output = run_script(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, ROOT / "tests/drills/poisoned_rank.py",
        ROOT / "recipes/qwen_lora.py", "--model_name_or_path", tiny, "--data", data, "--output_dir", tmp_path / "out",
        "--dtype", "float32", "--max_tokens_per_row", 600, "--max_steps", 6, "--save_strategy", "steps",
        "--save_steps", 1, "--report_to", "none", "--gradient_checkpointing", "false",
        "--dataloader_num_workers", 0, *options, code=1,
    )  # fmt: skip
    assert steps_kept(tmp_path / "out") == ["checkpoint-2", "checkpoint-1"]
    trainer, _ = make_trainer(tiny, data, tmp_path / "plan", TuningArguments(), per_device_train_batch_size=2)
    names = ", ".join(images_of(trainer, range(5, 6)))  # the second of the third step's two rows
    assert f"step 3, rank 1: the loss is nan. Its images here: {names}. " in output
    assert f"The last complete checkpoint is {tmp_path / 'out/checkpoint-2'}. " in output
