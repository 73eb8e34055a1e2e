"""Where a resumed training differs from one that nobody disturbed, if anywhere: at ends, and in evaluations."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import make_trainer

from sarlang_sft.arguments import DataArguments
from sarlang_sft.checkpoints import last_complete
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TuningArguments

EPOCHS = {"logging_strategy": "epoch", "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}


@pytest.fixture
def trainer_in(tiny: Path, data: Path, tmp_path: Path) -> object:
    """A trainer of the run in an output folder of that name."""

    def trainer_in(name: str, **options: object) -> RunTrainer:
        quick = {"logging_steps": 2, "save_strategy": "steps", "save_steps": 2, "turns_per_image": 2}
        tuning = TuningArguments(lora_dropout=0.1)
        return make_trainer(tiny, data, tmp_path / name, tuning, **{**quick, "max_tokens_per_row": 2000, **options})[0]

    return trainer_in


def history(trainer: RunTrainer) -> list[tuple[int, float | None, float | None]]:
    lines = trainer.state.log_history
    return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines if "train_loss" not in line]


def weights(trainer: RunTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]


def stop_in(trainer: RunTrainer, step: int) -> None:
    """SIGTERM while it takes this step."""

    def training_step(*words: object) -> torch.Tensor:
        if trainer.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return RunTrainer.training_step(trainer, *words)

    trainer.training_step = training_step


def test_a_run_killed_behind_its_last_checkpoint_takes_no_step_more(trainer_in: object) -> None:
    whole = trainer_in("run", max_steps=3)
    whole.train()  # and is killed before its result is written
    again = trainer_in("run", max_steps=3)
    assert again.run.checkpoint.name == "checkpoint-3"
    again.train()
    assert again.state.global_step == 3 and history(again) == history(whole)
    assert all(map(torch.equal, weights(again), weights(whole)))


@pytest.mark.parametrize("step", [0, 1])
def test_a_stop_neither_adds_nor_loses_what_an_epoch_ends_with(step: int, trainer_in: object) -> None:
    whole = trainer_in("whole", **EPOCHS)
    whole.train()
    steps = whole.state.max_steps // 2
    assert [line[0] for line in history(whole)] == [steps, steps, 2 * steps, 2 * steps]
    stopped = trainer_in("stopped", **EPOCHS)
    stop_in(stopped, steps - step)
    stopped.train()
    assert stopped.interruption.stopping and last_complete(stopped.run.folder).name == f"checkpoint-{steps - step}"
    resumed = trainer_in("stopped", **EPOCHS)
    resumed.train()
    assert history(resumed) == history(whole)
    assert all(map(torch.equal, weights(resumed), weights(whole)))


def test_an_evaluation_of_the_last_step_that_was_cut_short_is_made_up_for(trainer_in: object) -> None:
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    whole = trainer_in("whole", **options)
    whole.train()
    stopped = trainer_in("stopped", **options)
    stop_in(stopped, 3)
    stopped.train()
    assert stopped.interruption.stopping and history(stopped)[-1][2] is None
    resumed = trainer_in("stopped", **options)
    resumed.train()
    assert history(resumed) == history(whole) and resumed.state.global_step == 3


def test_a_stop_while_an_evaluation_is_made_up_for_leaves_it_owed(trainer_in: object) -> None:
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    whole = trainer_in("whole", **options)
    whole.train()
    stopped = trainer_in("stopped", **options)
    stop_in(stopped, 2)
    stopped.train()
    for _ in range(2):
        stopped = trainer_in("stopped", **options, max_hours=1e-9)
        stopped.train()
        assert stopped.interruption.stopping and stopped.state.global_step == 2
    resumed = trainer_in("stopped", **options)
    resumed.train()
    assert history(resumed) == history(whole)


def test_a_result_holds_nothing_of_one_that_was_killed_while_it_was_written(
    trainer_in: object, data: Path, tmp_path: Path
) -> None:
    trainer = trainer_in("run", max_steps=1)
    metrics = trainer.train().metrics
    (tmp_path / "run/.result.part").mkdir()
    (tmp_path / "run/.result.part/model-00009-of-00009.safetensors").touch()
    save_result(trainer, DataArguments(str(data)), metrics)
    assert (tmp_path / "run/adapter_model.safetensors").is_file()
    assert not (tmp_path / "run/model-00009-of-00009.safetensors").exists()


def test_the_best_checkpoint_is_found_again_in_a_moved_folder(
    trainer_in: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "learning_rate": 0.0}
    first = trainer_in("run", max_steps=4, **options)
    first.train()
    assert Path(first.state.best_model_checkpoint).name == "checkpoint-2"
    shutil.move(tmp_path / "run", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = trainer_in("../" + tmp_path.name + "/moved", max_steps=8, save_total_limit=2, **options)
    moved.train()
    assert Path(moved.state.best_model_checkpoint).resolve() == tmp_path / "moved/checkpoint-2"
    assert {path.name for path in (tmp_path / "moved").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-8"}
