"""The small files of an output folder that others may read while it trains: its state, its lock, its scores."""

import errno
import fcntl
import json
import math
from pathlib import Path
from typing import Any

RUN, LOCK, EVALUATIONS = "run.json", ".lock", "evaluations.jsonl"
RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"
Evaluations = dict[int, dict[str, float]]  # by the step of the optimiser


def state_of(folder: Path) -> str | None:
    """`running`, `stopped` or `finished`; None where no run has begun."""
    try:
        return json.loads((folder / RUN).read_text(encoding="utf-8"))["state"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def holder_of(folder: Path) -> str | None:
    """The process that trains there now, as it calls itself; None if there is none."""
    try:
        with open(folder / LOCK, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                    return None
                return file.read().decode(errors="replace").strip() or "another process"
    except FileNotFoundError:
        pass
    return None


def append_evaluation(folder: Path, step: int, metrics: dict[str, float]) -> None:
    """Add a line to `evaluations.jsonl`."""
    line = json.dumps({"step": step, **metrics})
    with open(folder / EVALUATIONS, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")  # a line that a kill cut short is not continued


def read_evaluations(folder: Path) -> Evaluations:
    """What every evaluation gave, without those that a resumed run made again, and without values that are no numbers.

    An evaluation before the first step (`eval_on_start`) is left out: nothing is learned yet.
    """
    try:
        lines = (folder / EVALUATIONS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found: Evaluations = {}
    for line in lines:
        entry = _parse(line)
        if entry.get("step"):
            step = entry.pop("step")
            found = {earlier: metrics for earlier, metrics in found.items() if earlier < step}
            found[step] = {name: value for name, value in entry.items() if math.isfinite(value)}
    return found


def _parse(line: str) -> dict[str, Any]:
    try:
        return json.loads(line) if line else {}
    except json.JSONDecodeError:  # cut short
        return {}
