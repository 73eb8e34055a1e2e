"""Leaving on request: SIGTERM as Slurm sends it, Ctrl-C, and the end of the time that was given."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import make_trainer

from drills.runs import Drill, Process, check_usable
from sarlang_sft.checkpoints import last_complete
from sarlang_sft.errors import STOPPED_EXIT
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.tuning import TuningArguments


def to_everything(process: Process, number: signal.Signals) -> None:
    """To the launcher, its ranks and their loader workers, as Slurm and a terminal send it."""
    os.killpg(process.process.pid, number)


@pytest.fixture(scope="module")
def whole(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """A run that nobody disturbed."""
    drill = Drill(tiny, data, tmp_path_factory.mktemp("stop") / "whole")
    drill.finish()
    return drill


def test_sigterm_and_ctrl_c_write_a_checkpoint_and_leave_with_code_75(whole: Drill, tmp_path: Path) -> None:
    drill = Drill(whole.model, whole.data, tmp_path / "stopped", {"save_steps": 1000, "dataloader_num_workers": 1})
    for number, send in ((signal.SIGTERM, Process.signal), (signal.SIGINT, to_everything)):
        process = drill.start()
        process.wait_for("'loss'")
        send(process, number)
        send(process, number)
        assert process.wait() == STOPPED_EXIT, process.output()
        check_usable(drill.out)
        step = int(last_complete(drill.out).name.removeprefix("checkpoint-"))
        assert f"{number.name}: leaving after step {step}" in process.output() and 3 <= step < 30
        assert "Traceback" not in process.output() and drill.state() == "stopped"
        run_id = drill.run_id()
    output = drill.finish()
    assert f"Resuming from {drill.out}/checkpoint-{step}" in output
    assert (drill.state(), drill.run_id()) == ("finished", run_id)
    assert drill.losses() == whole.losses()
    reference = whole.adapter()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in drill.adapter().items())


def test_two_ranks_stop_together_whoever_gets_the_signal(tiny: Path, data: Path, tmp_path: Path) -> None:
    drill = Drill(tiny, data, tmp_path / "stopped", {"max_steps": 200, "dataloader_num_workers": 1}, ranks=2)
    process = drill.start()
    process.wait_for("'loss'")
    to_everything(process, signal.SIGTERM)
    assert process.wait() != 0, process.output()
    assert "SIGTERM: leaving after step" in process.output() and drill.state() == "stopped"
    check_usable(drill.out)
    first = last_complete(drill.out)

    drill.options["max_hours"] = 1e-5
    output = drill.finish(code=1)
    assert f"Resuming from {first}" in output and "max_hours 1e-05: leaving after step" in output
    assert drill.state() == "stopped" and last_complete(drill.out) != first


class Stops(torch.utils.data.Dataset):
    """The rows of val; the process is asked to stop when one is read."""

    def __init__(self, rows: torch.utils.data.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return self.rows[index]


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_evaluation_that_was_cut_short_is_made_up_for(
    when: str, tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def trainer_in(name: str) -> RunTrainer:
        trainer, _ = make_trainer(
            tiny, data, tmp_path / name, TuningArguments(lora_dropout=0.1), max_steps=6, logging_steps=2,
            save_strategy="steps", save_steps=6, eval_strategy="steps", eval_steps=3, turns_per_image=4,
        )  # fmt: skip
        return trainer

    def history(trainer: RunTrainer) -> list[tuple[int, float | None, float | None]]:
        lines = trainer.state.log_history
        return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines if "train_loss" not in line]

    whole = trainer_in("whole")
    whole.train()
    stopped = trainer_in("stopped")
    if when == "while":
        stopped.eval_dataset = Stops(stopped.eval_dataset)
    else:
        stopped.training_step = lambda *words: (
            (os.kill(os.getpid(), signal.SIGTERM) if stopped.state.global_step == 2 else None)
            or type(stopped).training_step(stopped, *words)
        )
    saved = []
    stopped.check_weights = lambda: saved.append(stopped.state.global_step)  # which every checkpoint begins with
    stopped.train()
    assert saved == [3] and capsys.readouterr().out.count("leaving after step 3") == 1
    assert stopped.interruption.stopping and last_complete(tmp_path / "stopped").name == "checkpoint-3"
    again = trainer_in("stopped")  # and once more, while it makes up for it
    again.eval_dataset = Stops(again.eval_dataset)
    again.train()
    assert again.interruption.stopping and last_complete(tmp_path / "stopped").name == "checkpoint-3"
    resumed = trainer_in("stopped")
    resumed.train()
    assert history(resumed) == history(whole) and [step for step, _, loss in history(whole) if loss] == [3, 6]


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_in_mid_epoch_or_at_its_end_changes_nothing_of_what_epochs_log(
    last: bool, tiny: Path, data: Path, tmp_path: Path
) -> None:
    def trainer_in(name: str) -> RunTrainer:
        epochs = dict.fromkeys(("logging_strategy", "eval_strategy", "save_strategy"), "epoch")
        trainer, _ = make_trainer(
            tiny, data, tmp_path / name, TuningArguments(), max_steps=-1, num_train_epochs=2, turns_per_image=1,
            max_tokens_per_row=2000, **epochs,
        )  # fmt: skip
        return trainer

    def history(trainer: RunTrainer) -> list[tuple[int, float | None, float | None]]:
        lines = trainer.state.log_history
        return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines if "train_loss" not in line]

    whole = trainer_in("whole")
    whole.train()
    steps = len(whole.train_dataset)
    assert steps > 1 and [step for step, loss, _ in history(whole) if loss] == [steps, 2 * steps]
    stopped = trainer_in("stopped")
    stopped.training_step = lambda *words: (
        (os.kill(os.getpid(), signal.SIGTERM) if stopped.state.global_step == (steps - 1) * last else None)
        or type(stopped).training_step(stopped, *words)
    )
    stopped.train()
    assert stopped.state.global_step == (steps if last else 1) and stopped.interruption.owes_evaluation == last
    assert [step for step, _, _ in history(stopped)] == [steps] * last
    resumed = trainer_in("stopped")
    resumed.train()
    assert history(resumed) == history(whole)
