"""Sweeps of `sweep_trainer.py` as processes that can be killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from conftest import ROOT

from sarlang_sft.run_files import holder_of
from sarlang_sft.sweep_files import Sweep, read_sweep
from sarlang_sft.sweep_search import propose
from sarlang_sft.trials import FINISHED, Beginning, Trials

TRAINER = ROOT / "tests/sweep_trainer.py"
RATE = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
FILE = {
    "program": str(TRAINER), "method": "random", "metric": {"name": "eval/accuracy", "goal": "maximize"}, "run_cap": 3,
    "parameters": {
        "config": {"value": str(ROOT / "recipes/configs/demo.yaml")}, "learning_rate": RATE,
        "lora_r": {"values": [4, 8]}, "eval_strategy": {"value": "steps"}, "eval_steps": {"value": 2},
        "val_questions": {"value": 20},
    },
}  # fmt: skip


def write(path: Path, changes: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None) -> Path:
    """A sweep file like `FILE`; None removes."""
    content = {**FILE, **(changes or {})}
    content["parameters"] = {**FILE["parameters"], **(parameters or {})}
    for mapping in (content, content["parameters"]):
        for name in [name for name, value in mapping.items() if value is None]:
            del mapping[name]
    path.write_text(yaml.safe_dump(content))
    return path


def sweep_of(tmp_path: Path, **changes: Any) -> Sweep:
    return read_sweep(write(tmp_path / "sweep.yaml", changes))


TORCHRUN_SAYS = """
E1120 torch/distributed/elastic/multiprocessing/api.py:1013] failed (exitcode: {code}) local_rank: 0 (pid: 7)
Failures:
[1]:
  exitcode  : -15 (pid: 8)
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 7)
"""

DRIVER = """
import sys
from pathlib import Path
from sarlang_sft.sweep_files import read_sweep
from sarlang_sft.sweep_local import run_local
from sarlang_sft.trial_processes import Slot
from sarlang_sft.trials import Beginning, Trials
from sarlang_sft.errors import exit_on_bad_input

sweep, out = read_sweep(Path(sys.argv[1])), Path(sys.argv[2])
trials = Trials(out / "sweep.sqlite")
trials.begin(Beginning(str(sweep.path), sweep.text, {}, sweep.configs, 0, 1, "local"))
with exit_on_bad_input():
    done = run_local(sweep, trials, out / "trials", eval(sys.argv[3], {"Slot": Slot}), 0, lambda trial: {})
    sys.exit(0 if done else 75)
"""  # what recipes/sweep.py does without its half a minute of imports and checks


class Driver:
    """The sweep of a file in a folder, as a process."""

    def __init__(self, path: Path, out: Path, slots: str = "[Slot((), 1)]") -> None:
        out.mkdir(exist_ok=True)
        self.words = [sys.executable, "-c", DRIVER, str(path), str(out), slots]
        self.out = out

    def start(self) -> subprocess.Popen:
        """Begin, or go on."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with open(self.out / "output", "ab") as log:
            return subprocess.Popen(self.words, stdout=log, stderr=log, env=environment, cwd=ROOT, process_group=0)

    def finish(self, code: int = 0) -> str:
        """Run to its end; what it has printed so far."""
        process = self.start()
        assert process.wait(600) == code, (self.out / "output").read_text()
        return (self.out / "output").read_text()

    def all(self) -> list[Any]:
        """The trials, as they are in the store."""
        return Trials(self.out / "sweep.sqlite").all()

    def starts(self) -> dict[str, list[str]]:
        """The lines of `sweep_trainer.py` about its starts, by the trial."""
        return {one.parent.name: one.read_text().splitlines() for one in sorted(self.out.glob("trials/*/starts"))}


def wait_until(happened: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.args
        time.sleep(0.05)


def has_checkpoint(out: Path) -> Callable[[], bool]:
    """Whether a trial that is not over has written a checkpoint."""
    return lambda: any(holder_of(path.parent) for path in out.glob("trials/*/checkpoint-*"))


def family_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The sweep, torchrun and the ranks, in this order."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def store_of(sweep: Sweep, tmp_path: Path) -> Trials:
    trials = Trials(tmp_path / "sweep.sqlite")
    trials.begin(Beginning(str(sweep.path), sweep.text, {}, sweep.configs, 0, 2, "local"))
    return trials


def run_through(sweep: Sweep, trials: Trials, seed: int) -> list[dict[str, Any]]:
    """All trials that are proposed, each finished with a score that follows from its values."""
    while params := propose(sweep, trials.all(), seed):
        trial = trials.add(json.loads(json.dumps(params)))
        trials.keep_evaluations(trial, {2: {"eval_accuracy": params["learning_rate"] * params["lora_r"]}})
        trials.set_over(trial, FINISHED, 0)
    return [trial.params for trial in trials.all()]
