"""Tracking: one run per output folder, and nothing that befalls W&B reaches the training."""

import json
import logging
import os
import pty
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from conftest import make_trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerState
from transformers.integrations.integration_utils import WandbCallback
from wandb_files import read_attempt, read_attempts
from wandb_server import WandbServer, seclude_wandb, wandb_server

from sarlang_sft import tracking
from sarlang_sft.arguments import TrainArguments
from sarlang_sft.errors import InputError
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.tracking import WandbTracker, with_pictures
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_answers import Answer

RECORD = {"options": {"learning_rate": 0.1, "tasks": ["counting"]}, "git": {"commit": "abc", "dirty": None}}


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb offline, out of reach of the settings, keys and folders of whoever runs the tests."""
    seclude_wandb(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that wandb talks to."""
    monkeypatch.setenv("WANDB_MODE", "online")
    with wandb_server() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def tracker_of(folder: Path, record: dict[str, object] = RECORD) -> WandbTracker:
    return WandbTracker(folder, "id0", "a name", record)


def begin(tracker: WandbTracker, rank: int = 0) -> TrainerState:
    state = TrainerState(is_world_process_zero=rank == 0)
    tracker.on_train_begin(None, state, None)
    return state


def log_steps(tracker: WandbTracker, state: TrainerState, steps: range) -> None:
    for step in steps:
        state.global_step = step
        tracker.on_log(None, state, None, logs={"loss": 1 / step, "mfu": 0.3})


def track(folder: Path, steps: range, record: dict[str, object] = RECORD) -> None:
    """A whole attempt without a training."""
    tracker = tracker_of(folder, record)
    state = begin(tracker)
    log_steps(tracker, state, steps)
    tracker.on_train_end(None, state, None)


def logged_steps(history: list[dict[str, object]]) -> list[int]:
    return [line["train/global_step"] for line in history if "train/loss" in line]


def cores() -> list[psutil.Process]:
    """The processes that wandb has started beside this one and that run."""
    children = psutil.Process().children()
    return [child for child in children if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE]


def command_of(output: str) -> str:
    """The one command for the upload that the tracker printed."""
    [command] = [line.split("upload this run: ")[1] for line in output.splitlines() if "upload this run" in line]
    return command


def run_command(command: str, server: WandbServer, where: Path) -> str:
    """What a shell prints that runs it in a folder, where the client leaves its logs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **server.environment(), "PATH": path}
    ran = subprocess.run(
        ["sh", "-c", command], cwd=where, env=environment, capture_output=True, text=True, timeout=120
    )
    return ran.stdout + ran.stderr


class AtStep(TrainerCallback):
    """Does something after a step of the training."""

    def __init__(self, step: int, act: object) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        """Called by the trainer."""
        if state.global_step == self.step:
            self.act()


def losses(trainer: RunTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_resumed_training_is_one_run_whose_printed_command_uploads_it_whole(
    tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"report_to": "wandb", "logging_steps": 1, "save_strategy": "steps", "save_steps": 2, "run_name": "n"}
    for steps in (2, 4):
        tuning = TuningArguments(tuning="lora")
        trainer, _ = make_trainer(tiny, data, tmp_path, tuning, max_steps=steps, **options)
        trainer.tracker.again = False  # as after a stop on request
        assert not any(type(callback) is WandbCallback for callback in trainer.callback_handler.callbacks)
        trainer.train()
    first, second = read_attempts(tmp_path / "wandb")
    assert first.id == second.id == trainer.run.id and first.name == second.name == "n"
    assert [logged_steps(attempt.history) for attempt in (first, second)] == [[1, 2], [3, 4]]
    for attempt in (first, second):
        assert attempt.config["components"]["language_model"]["state"] == "adapted" and attempt.exit_code == 0
        assert attempt.config["data"][0]["train.parquet"] == trainer.run.facts["data"][0]["train.parquet"]
        assert {"options", "versions", "git", "base"} <= attempt.config.keys()
        assert attempt.steps == {"train/global_step": "", "*": "train/global_step"}
        assert "proc.memory.rssMB" in attempt.system
        assert {"train/loss", "train/qa_per_s", "train/tokens_per_s", "train/epoch"} <= attempt.history[0].keys()
    assert not cores()
    with wandb_server() as server:
        output = capsys.readouterr().out
        assert f"W&B: offline (as chosen), kept in {tmp_path / 'wandb'}" in output
        command = command_of(output.splitlines()[-1])
        run_command(command, server, tmp_path)
        assert list(server.runs) == [first.id] and logged_steps(server.history(first.id)) == [1, 2, 3, 4]
        assert server.config(first.id)["options"]["max_steps"] == 4
        steps = [line["_step"] for line in server.history(first.id)]
        assert steps == list(range(len(steps)))  # none replaces another
        assert "No runs to sync" in run_command(command, server, tmp_path)


def test_files_that_break_off_or_are_empty_keep_no_other_from_the_upload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder"
    for first in (1, 4, 7, 10):
        track(folder, range(first, first + 3))
    torn, empty = sorted(folder.glob("wandb/offline-run-*/run-id0.wandb"))[1:3]
    torn.write_bytes(torn.read_bytes()[:-10])
    empty.write_bytes(b"")
    with wandb_server() as server:
        run_command(command_of(capsys.readouterr().out.splitlines()[-1]), server, tmp_path)
        assert list(server.runs) == ["id0"]
        assert set(logged_steps(server.history("id0"))) >= {1, 2, 3, 4, 5, 10, 11, 12}


def test_online_a_resumed_run_goes_on_with_its_new_configuration(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    track(tmp_path, range(1, 4), {"git": "old", "kept": 1})
    track(tmp_path, range(3, 6), {"git": "new"})  # step 3 again, since the checkpoint was older than the log
    assert logged_steps(server.history("id0")) == [1, 2, 3, 3, 4, 5]
    assert [line["_step"] for line in server.history("id0")] == list(range(6))
    assert server.config("id0") == {"git": "new", "kept": 1}
    output = capsys.readouterr().out
    assert "offline" not in output and "upload this run" not in output and "stopped" not in output


def test_a_run_can_change_between_offline_and_online(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(tmp_path, range(1, 3))
    monkeypatch.setenv("WANDB_MODE", "online")
    capsys.readouterr()
    track(tmp_path, range(3, 5))
    run_command(command_of(capsys.readouterr().out), server, tmp_path)  # what is not uploaded yet is said again
    assert sorted(logged_steps(server.history("id0"))) == [1, 2, 3, 4]


@pytest.mark.parametrize("trouble", ["nobody there", "no answer", "refused", "bad key", "no key"])
def test_where_w_and_b_cannot_be_reached_the_run_is_offline(
    trouble: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    if trouble == "nobody there":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif trouble == "no answer":
        server.silent.set()
    elif trouble == "refused":
        server.refused.add("UpsertBucket")
    elif trouble == "bad key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    else:
        monkeypatch.delenv("WANDB_API_KEY")
    track(tmp_path, range(1, 4))
    output = capsys.readouterr().out
    reason = {"no key": "no API key", "bad key": "API key must have", "refused": "refused"}.get(trouble, "Failed to")
    assert "W&B: offline (" in output and reason in output
    [attempt] = read_attempts(tmp_path / "wandb")
    assert attempt.id == "id0" and logged_steps(attempt.history) == [1, 2, 3]
    assert "offline-run-*/run-id0.wandb" in command_of(output)


def test_a_server_that_falls_silent_stops_the_run_in_bounded_time_and_the_rest_can_be_uploaded(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    tracker = tracker_of(tmp_path)
    state = begin(tracker)
    log_steps(tracker, state, range(1, 3))
    server.silent.set()
    log_steps(tracker, state, range(3, 5))
    tracker.on_train_end(None, state, None)
    output = capsys.readouterr().out
    assert output.count("W&B stopped: finish: TimeoutError") == 1
    server.silent.clear()
    run_command(command_of(output), server, tmp_path)
    assert set(logged_steps(server.history("id0"))) == {1, 2, 3, 4}


def test_a_killed_wandb_core_changes_nothing_in_the_training(
    tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"logging_steps": 1, "max_steps": 4}
    untracked, _ = make_trainer(tiny, data, tmp_path / "a", TuningArguments(tuning="lora"), **options)
    untracked.train()
    trainer, _ = make_trainer(tiny, data, tmp_path / "b", TuningArguments(tuning="lora"), report_to="wandb", **options)
    trainer.add_callback(AtStep(2, lambda: [core.kill() for core in cores()]))
    capsys.readouterr()
    trainer.train()
    assert losses(trainer) == losses(untracked) and len(losses(trainer)) == 4
    output = capsys.readouterr().out
    assert output.count("W&B stopped: log: ") == 1 and "trainer_state.json" in output


def test_a_hung_wandb_core_is_left_after_one_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    monkeypatch.setattr(tracking, "LAST_PATIENCE", 0.5)
    tracker = tracker_of(tmp_path)
    state = begin(tracker)
    [core] = cores()
    core.suspend()
    try:
        for step in range(1, 50):
            state.global_step = step
            tracker.on_log(None, state, None, logs={"text": "x" * 100_000})  # fills the socket
        tracker.on_train_end(None, state, None)
    finally:
        core.kill()
    assert capsys.readouterr().out.count("W&B stopped: log: no answer within 1 second") == 1


@pytest.mark.parametrize("full", ["at the start", "later"])
def test_a_full_disk_stops_the_tracking_alone(full: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")

    def fill() -> None:
        with pytest.raises(OSError, match="No space"), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    try:
        if full == "at the start":
            fill()
        tracker = tracker_of(disk)
        state = begin(tracker)
        if full == "later":
            log_steps(tracker, state, range(1, 3))
            fill()
        log_steps(tracker, state, range(3, 6))
        tracker.on_train_end(None, state, None)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    captured = capsys.readouterr()
    assert captured.out.count("W&B stopped: log: OSError: [Errno 28] No space left on device") == 1
    assert "Traceback" not in captured.err
    assert ("upload this run" in captured.out) == (full == "later")  # nothing came to the disk that was full at once


ENDS = """
import os, signal, sys, time
from pathlib import Path
import psutil
from transformers import TrainerState
from sarlang_sft import tracking

tracking.LAST_PATIENCE = tracking.PATIENCE = 2.0
tracker = tracking.WandbTracker(Path(sys.argv[1]), "id0", None, {})
state = TrainerState(is_world_process_zero=True, global_step=1)
tracker.on_train_begin(None, state, None)
tracker.on_log(None, state, None, logs={"loss": 1.0})
[core] = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
print("core", core.pid, flush=True)
time.sleep(0.5)
if sys.argv[2] == "core hangs":
    core.suspend()
if sys.argv[2] == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
raise RuntimeError("the training failed")
"""


@pytest.mark.parametrize("end", ["fails", "is killed", "core hangs"])
def test_a_program_on_a_terminal_is_never_asked_always_ends_and_keeps_its_lines(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    terminal, slave = pty.openpty()
    command = [sys.executable, "-c", ENDS, str(tmp_path), end]
    with (tmp_path / "log").open("w") as log:
        program = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=log)
    try:
        assert program.wait(timeout=120) == (-9 if end == "is killed" else 1)
    finally:
        program.kill()
        os.close(slave)
        printed = os.read(terminal, 65536).decode()
        os.close(terminal)
        if end == "core hangs":
            psutil.Process(int(printed.split("core ")[1].split()[0])).kill()
    assert "no API key" in printed and ("the training failed" in (tmp_path / "log").read_text()) == (
        end != "is killed"
    )
    [attempt] = read_attempts(tmp_path / "wandb")
    assert logged_steps(attempt.history) == [1] and attempt.exit_code == (1 if end == "fails" else None)


@pytest.mark.parametrize(("mode", "rank"), [("disabled", 0), ("offline", 1)])
def test_other_ranks_and_disabled_runs_start_nothing(
    mode: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    tracker = tracker_of(tmp_path / "out")
    state = begin(tracker, rank)
    assert not cores()
    log_steps(tracker, state, range(1, 3))
    tracker.log_answers(1, [Answer("a", [], "counting", "q", "1", "2", False)])
    tracker.on_train_end(None, state, None)
    assert not (tmp_path / "out").exists() and capsys.readouterr().out == ""


def test_the_users_own_settings_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"PROJECT": "theirs", "ENTITY": "team", "NAME": "their name", "TAGS": "a,b", "DIR": str(tmp_path / "mine")}
    for name, value in own.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "mine").mkdir()
    track(tmp_path / "out", range(1, 3))
    [file] = (tmp_path / "mine/wandb").glob("offline-run-*/run-id0.wandb")
    attempt = read_attempt(file)
    assert attempt.name == "their name" and attempt.project == "theirs" and not (tmp_path / "out").exists()


def write_radar(path: Path, size: int) -> Path:
    """A 16-bit image."""
    pixels = np.random.default_rng(0).integers(0, 60_000, (1, size, size), dtype=np.uint16)
    with rasterio.open(path, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint16") as file:
        file.write(pixels)
    return path


def test_a_table_shows_answers_beside_their_pictures(tmp_path: Path) -> None:
    radar = write_radar(tmp_path / "radar.tif", 700)
    Image.new("L", (100, 50), 9).save(tmp_path / "small.png")
    images = [[radar], [tmp_path / "missing.png"], [], [radar, tmp_path / "small.png"]]
    verdicts = [True, False, None, True]
    answers = [
        Answer(f"{number}", files, "counting", "How many?", "3", "4", verdict)
        for number, (files, verdict) in enumerate(zip(images, verdicts, strict=True))
    ]
    tracker = tracker_of(tmp_path)
    state = begin(tracker)
    tracker.log_answers(7, answers)
    tracker.on_train_end(None, state, None)
    [attempt] = read_attempts(tmp_path / "wandb")
    [line] = attempt.history
    assert line["train/global_step"] == 7 and line["eval/answers/nrows"] == 4
    [files] = attempt.artifacts
    assert all(file.is_relative_to(tmp_path / "wandb") for file in files.values())  # not in the home folder
    table = json.loads(files["eval/answers.table.json"].read_text())
    assert table["columns"] == ["step", "task", "picture", "question", "truth", "answer", "right"]
    pictures = [row.pop(2) for row in table["data"]]
    assert table["data"] == [[7, "counting", "How many?", "3", "4", verdict] for verdict in verdicts]
    sizes = [picture and Image.open(files[picture["path"]]).size for picture in pictures]
    assert sizes == [(256, 256), None, None, (356, 256)]
    assert np.std(Image.open(files[pictures[0]["path"]])) > 10  # 16 bits are stretched, not cut


def test_a_table_takes_its_rows_evenly(tmp_path: Path) -> None:
    answers = [Answer(str(number), [], "t", str(number), "", "", None) for number in range(100)]
    assert [answer.id for answer, _ in with_pictures(answers)] == [str(number) for number in range(0, 100, 4)]
    assert len(with_pictures(answers[:32])) == 32 and len(with_pictures(answers[:33])) == 17


def test_tensorboard_goes_on_when_resumed(tiny: Path, data: Path, tmp_path: Path) -> None:
    options = {"report_to": "tensorboard", "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    for steps in (2, 4):
        tuning = TuningArguments(tuning="lora")
        trainer, _ = make_trainer(tiny, data, tmp_path, tuning, max_steps=steps, **options)
        assert trainer.tracker is None
        trainer.train()
        time.sleep(1)  # its folders are named by the second
    found = {}
    for file in tmp_path.glob("runs/*/events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        found |= {event.step: event.value for event in events.Scalars("train/loss")}
    assert sorted(found) == [1, 2, 3, 4] and [found[step] for step in sorted(found)] == pytest.approx(losses(trainer))
    assert not (tmp_path / "wandb").exists()


def test_trackio_keeps_one_local_run_when_resumed(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for module in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)  # it reads its folder when it is imported
    options = {"report_to": "trackio", "logging_steps": 1, "save_strategy": "steps", "save_steps": 2, "run_name": "n"}
    for steps in (2, 4):
        tuning = TuningArguments(tuning="lora")
        trainer, _ = make_trainer(tiny, data, tmp_path, tuning, max_steps=steps, **options)
        trainer.train()
    with sqlite3.connect(tmp_path / "trackio/huggingface.db") as store:
        rows = store.execute("select run_name, run_id, metrics from metrics order by id").fetchall()
    lines = [json.loads(metrics) for _, _, metrics in rows]
    assert len({(name, identity) for name, identity, _ in rows}) == 1
    assert logged_steps(lines) == [1, 2, 3, 4]
    assert [line["train/loss"] for line in lines if "train/loss" in line] == pytest.approx(losses(trainer))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="report_to `wandbb`"):
        TrainArguments(output_dir=str(tmp_path), report_to="wandbb")
    assert TrainArguments(output_dir=str(tmp_path)).report_to == ["wandb"]
    assert TrainArguments(output_dir=str(tmp_path), report_to="none").report_to == []


def test_after_a_kill_the_lines_since_the_checkpoint_before_are_logged_again(tmp_path: Path) -> None:
    track(tmp_path, range(1, 3))
    tracker = WandbTracker(tmp_path, "id0", "a name", RECORD, again=True)
    lines = [{"loss": 1 / step, "epoch": 0.1, "step": step} for step in (1, 2, 4, 6, 8)]
    state = TrainerState(is_world_process_zero=True, global_step=8, save_steps=4, log_history=lines)
    tracker.on_train_begin(None, state, None)
    tracker.on_train_end(None, state, None)
    first, second = read_attempts(tmp_path / "wandb")
    assert [logged_steps(attempt.history) for attempt in (first, second)] == [[1, 2], [6, 8]]
    assert second.history[0]["train/loss"] == 1 / 6 and "train/step" not in second.history[0]


def test_in_a_sweep_of_wandb_the_id_of_the_folder_holds(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    track(tmp_path, range(1, 3))
    assert list(server.runs) == ["id0"] and logged_steps(server.history("id0")) == [1, 2]
