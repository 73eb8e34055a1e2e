"""A rank that hangs is named before the process group gives up, and the run ends."""

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from conftest import make_trainer

from drills.runs import ROOT, Drill, Process
from sarlang_sft.arguments import TrainArguments
from sarlang_sft.errors import InputError
from sarlang_sft.ranks import Ranks
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.watchdog import Heard, Report, Watchdog, judge

WAITING = [str(ROOT / "tests/drills/waiting_ranks.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SECOND = rf"rank 1 on {re.escape(socket.gethostname())} \(process (\d+)\)"
SECONDS = "20"  # ddp_timeout: a busy machine must not keep a rank from reporting for a tenth of it


def heard(step: int, moves: int, idle: float, silent: float = 0.0, doing: str = "training") -> Heard:
    return Heard(Report(step, moves, doing, idle, 9, "node7", 4711), silent)


def test_a_rank_that_answers_no_more_is_the_one_that_hangs() -> None:
    verdict = judge([heard(5, 2, 95), heard(5, 1, 0.2, silent=90), heard(5, 2, 96)], 100)
    assert not verdict.moving and verdict.speaker == 0
    assert verdict.message == (
        "no progress for 96 s (ddp_timeout 100). Hung: rank 1 on node7 (process 4711): its process has not answered "
        "for 90 s, it was last at step 5, training"
    )


def test_the_rank_that_is_behind_is_the_one_that_hangs() -> None:
    ranks = [heard(5, 0, 97, doing="reading data"), heard(5, 1, 96), heard(5, 0, 97, doing="reading data")]
    verdict = judge(ranks, 100)
    where = "on node7 (process 4711): at step 5, reading data for 97 s"
    assert not verdict.moving and verdict.message.endswith(f"Hung: rank 0 {where}; rank 2 {where}")
    assert "Hung: rank 0 on" in judge([heard(4, 9, 97), heard(5, 0, 96)], 100).message
    assert "All ranks wait at one place" in judge([heard(5, 1, 97), heard(5, 1, 96)], 100).message


def test_a_run_in_which_a_rank_moves_is_not_ended() -> None:
    verdict = judge([heard(5, 1, 30), heard(5, 1, 95), heard(5, 1, 96)], 100)
    assert verdict.moving and verdict.speaker == 1 and "Slow: rank 0 on node7" in verdict.message
    assert judge([heard(5, 1, 95), heard(5, 1, 89.9)], 100).moving
    assert not judge([heard(5, 1, 95), heard(5, 1, 1, silent=50)], 100).moving, "what it said is long ago"


def test_one_rank_is_not_watched() -> None:
    watchdog = Watchdog(Ranks(timedelta(seconds=1)), 1)
    watchdog.start()
    watchdog.progress(1, "training")
    time.sleep(1.5)  # it would end this process
    watchdog.stop()


@contextmanager
def started(words: list[str]) -> Iterator[Process]:
    """A program, killed with everything that it has started if it still runs in the end."""
    process = Process(words)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


@pytest.mark.parametrize(
    ("way", "culprit"),
    [
        pytest.param(
            "stopped",
            rf"Hung: {SECOND}: its process has not answered for \d+ s, it was last at step 7, training\.",
            marks=pytest.mark.slow,
        ),
        pytest.param("behind", rf"Hung: {SECOND}: at step 7, reading data for \d+ s\.", marks=pytest.mark.slow),
        pytest.param(
            "alike",
            rf"All ranks wait at one place, for a network or devices: rank 0 on .*; {SECOND}: at step 7, read",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["stopped", "behind", "alike"],
)
def test_ranks_of_torchrun_name_it_and_end(way: str, culprit: str) -> None:
    with started([*TORCHRUN, *WAITING, way, SECONDS]) as process:
        assert process.wait() == 1
        output = process.output()
    assert output.count("error: no progress for") == 1, output
    assert re.search(culprit, output)[1] == re.search(r"rank 1 is process (\d+)", output)[1]


@pytest.mark.parametrize(
    ("way", "culprit"),
    [
        ("stopped", rf"Hung: {SECOND}: its process has not answered for"),
        pytest.param("behind", rf"Hung: {SECOND}: at step 7, reading data for \d+ s\.", marks=pytest.mark.slow),
        ("first_stopped", r"rank 1: no progress for .*, and nothing answers at 127\.0\.0\.1:\d+\. Hung: rank 0, or"),
    ],
    ids=["stopped", "behind", "first_stopped"],
)
def test_ranks_without_a_launcher_name_it_and_end(way: str, culprit: str) -> None:
    """Rank 0 keeps the store then: when it is stopped, the store answers nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["env", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}", "WORLD_SIZE=2"]
    words = [[*own, f"RANK={rank}", sys.executable, *WAITING, way, SECONDS] for rank in range(2)]
    with started(words[0]) as first, started(words[1]) as second:
        ending = second if way == "first_stopped" else first
        assert ending.wait() == 1 and re.search(culprit, ending.output()), ending.output()


@pytest.mark.slow
def test_a_rank_that_is_slow_but_moves_ends_nothing() -> None:
    with started([*TORCHRUN, *WAITING, "slow", SECONDS]) as process:
        assert process.wait() == 0, process.output()
        output = process.output()
    assert "error" not in output and output.count("is done") == 2
    assert output.count("warning: rank 0: no progress for") == 1 and "Slow: rank 1 on" in output


@pytest.mark.slow
def test_a_job_that_was_suspended_goes_on() -> None:
    with started([*TORCHRUN, *WAITING, "well", SECONDS]) as process:
        process.wait_for("rank 0 is process")
        process.wait_for("rank 1 is process")
        ranks = psutil.Process(process.process.pid).children()
        for rank in ranks:
            rank.suspend()
        time.sleep(1.5 * float(SECONDS))
        for rank in ranks:
            rank.resume()
        assert process.wait() == 0, process.output()
    assert process.output().count("is done") == 2 and "no progress" not in process.output()


def test_a_time_out_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ddp_timeout 0: must be at least 1 second"):
        TrainArguments(output_dir=str(tmp_path), ddp_timeout=0)


def check_ended(process: Process, out: Path, culprit: str) -> None:
    """The run has named the rank, nothing else did, and nothing of it is left."""
    assert process.wait() == 1, process.output()
    output = process.output()
    assert output.count("error: no progress for") == 1 and re.search(culprit, output), output
    assert "imed out" not in output, "the process group's own time-out names nobody"
    left = [one for one in psutil.process_iter(["cmdline"]) if str(out) in (one.info["cmdline"] or [])]
    assert not left


@pytest.mark.parametrize("mode", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_training_names_the_rank_that_was_stopped(mode: str, tiny: Path, data: Path, tmp_path: Path) -> None:
    if mode != "ddp" and not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler: DeepSpeed compiles its CPU communication kernels")
    options = {"deepspeed": ROOT / f"deepspeed_configs/{mode}.json"} if mode != "ddp" else {}
    drill = Drill(tiny, data, tmp_path / "out", {"max_steps": 5000, "ddp_timeout": 40, **options}, ranks=2)
    with started(drill.words()) as process:
        process.wait_for("'loss'")
        ranks = {rank.environ()["RANK"]: rank for rank in psutil.Process(process.process.pid).children()}
        time.sleep(3)  # three reports
        ranks["1"].suspend()
        check_ended(
            process, drill.out, rf"Hung: {SECOND}: its process has not answered for \d+ s, it was last at step"
        )
    assert str(ranks["1"].pid) == re.search(SECOND, process.output())[1]


@pytest.mark.slow
def test_a_training_names_the_rank_whose_data_never_comes(
    tiny: Path, data: Path, sample: Path, tmp_path: Path
) -> None:
    """An image becomes a pipe that nobody writes to, as files are on a network share that is gone."""
    images = shutil.copytree(sample / "SARimages", tmp_path / "root/SARimages").parent
    options = {"ddp_timeout": 40, "image_root": images}
    drill = Drill(tiny, data, tmp_path / "out", options, ranks=2)
    planned, _ = make_trainer(
        tiny, data, tmp_path / "plan", TuningArguments(), turns_per_image=4, per_device_train_batch_size=2
    )
    [name] = planned.train_dataset[5][0][0]["images"]  # of the second rank in the third step
    (images / name).unlink()
    os.mkfifo(images / name)
    with started(drill.words()) as process:  # accelerate takes one batch more than the step needs
        check_ended(process, drill.out, rf"Hung: {SECOND}: at step 2, reading data for \d+ s\.")
