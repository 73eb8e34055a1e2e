"""Trials as processes: torchrun on a set of GPUs, asked to stop by SIGTERM, and how it ended."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from sarlang_sft.errors import STOPPED_EXIT, InputError
from sarlang_sft.run_files import FINISHED as RUN_FINISHED
from sarlang_sft.run_files import state_of
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, STOPPED_EARLY

LOG = "trial.log"
PATIENCE = 600  # seconds that a step and a checkpoint may take after SIGTERM
NOTE_LINES = 6
_REPORT = re.compile(r"^.*torch[./]distributed[./]elastic.*$", re.MULTILINE)  # torchrun's own lines about a failure
_RANK_CODE = re.compile(r"Root Cause .*?exitcode\s*:\s*(-?\d+)", re.DOTALL)
_LAUNCHER_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d+)")


class Slot(NamedTuple):
    """Where one trial at a time runs: GPUs by their names in CUDA_VISIBLE_DEVICES (none: the CPU); so many ranks."""

    gpus: tuple[str, ...]
    ranks: int


class End(NamedTuple):
    """How a trial's process ended; see `Trial`."""

    state: str
    exit_code: int
    note: str


def split_gpus(visible: list[str], parallel: int, ranks: int | None) -> list[Slot]:
    """One set of GPUs for each of so many trials at once.

    Args:
        visible: The GPUs; empty on a machine without any.
        ranks: Per trial; default: one per GPU of its set, or one.

    Raises:
        InputError: They cannot be split so.
    """
    if parallel < 1:
        raise InputError(f"--parallel {parallel}: must be at least 1")
    if ranks is not None and ranks < 1:
        raise InputError(f"--nproc_per_node {ranks}: must be at least 1")
    if not visible:
        return [Slot((), ranks or 1)] * parallel
    if len(visible) % parallel:
        raise InputError(
            f"--parallel {parallel}: {len(visible)} GPUs ({', '.join(visible)}) cannot be split into {parallel} equal "
            "sets; choose a divisor, or set CUDA_VISIBLE_DEVICES"
        )
    size = len(visible) // parallel
    if (ranks or 1) > size:
        raise InputError(f"--nproc_per_node {ranks}: a set has {size} of {len(visible)} GPUs; lower it or --parallel")
    sets = [tuple(visible[start : start + size]) for start in range(0, len(visible), size)]
    return [Slot(gpus, ranks or size) for gpus in sets]


def torchrun(program: Path, ranks: int, python: str = sys.executable) -> list[str]:
    """The words of the command before the recipe's options; each process gets SIGTERM if the one above it dies."""
    tied = [python, "-m", "sarlang_sft.tied", python]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*tied, *launch, "--shutdown_timeout", str(PATIENCE), "--no_python", *tied, str(program)]


def as_flags(params: dict[str, Any]) -> list[str]:
    """Options as a command line has them, where `-1e-05` alone would be taken for an option."""
    return [f"--{name}={value}" for name, value in params.items()]


class TrialProcess:
    """A trial that runs; its output goes to `trial.log` in its folder.

    Attributes:
        stopped: Why it was asked to stop, as the state it will have; "" if it was not.
    """

    def __init__(self, program: Path, params: dict[str, Any], folder: Path, slot: Slot, extra: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.stopped = folder, ""
        self.since = time.monotonic()
        self.checkpoints = set(folder.glob("checkpoint-*"))
        quiet = {} if "disable_tqdm" in params else {"disable_tqdm": "true"}
        own = {**quiet, "output_dir": folder, "resume": "auto"}
        words = [*torchrun(program, slot.ranks), *as_flags(params), *as_flags(own)]
        environment = {**os.environ, **extra}
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        with open(folder / LOG, "ab") as log:
            self.begins = log.tell()
            # In a group of its own: a terminal's Ctrl-C is passed on once, by the sweep.
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )

    def seconds(self) -> float:
        """Since this was asked last."""
        since, self.since = self.since, time.monotonic()
        return self.since - since

    def stop(self, state: str) -> None:
        """Ask for a checkpoint and the end; repeated requests change nothing."""
        if not self.stopped:
            self.stopped = state
            self.process.send_signal(signal.SIGTERM)

    def wrote_checkpoint(self) -> bool:
        """Whether there are checkpoints that were not there at its start."""
        return not set(self.folder.glob("checkpoint-*")) <= self.checkpoints

    def ended(self) -> End | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        with open(self.folder / LOG, "rb") as log:
            log.seek(self.begins)
            printed = log.read().decode(errors="replace")
        return judge(printed, code, state_of(self.folder), self.stopped)


def judge(printed: str, code: int, run_state: str | None, stopped: str) -> End:
    """What the end of torchrun means for its trial.

    Args:
        printed: The output of torchrun and its ranks. It leaves with 1 whatever ranks say, and prints their code.
        code: Its exit code.
        run_state: The state of the output folder.
        stopped: The state that it was asked to stop for, if it was.
    """
    if code == 0 and run_state == RUN_FINISHED:
        return End(FINISHED, 0, "")
    if rank := _RANK_CODE.search(printed):
        code = int(rank[1])
    elif got := _LAUNCHER_SIGNAL.search(printed):
        code = -int(got[1])
    if stopped in (STOPPED_EARLY, FAILED):
        return End(stopped, code, "")
    if stopped or code < 0 or code == STOPPED_EXIT:
        return End(INTERRUPTED, code, "")
    report = _REPORT.search(printed)
    said = printed[: report.start()] if report else printed
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    return End(FAILED, code, "\n".join(lines[-NOTE_LINES:]))
