"""Training runs as processes that can be killed at any moment, and what must hold of their output folder after it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from sarlang_sft.checkpoints import check_checkpoint, last_complete, list_checkpoints

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/qwen_lora.py"
PATIENCE = 300  # seconds until a drill that does not move counts as hung


@dataclass
class Drill:
    """A training of a tiny model: image trees, shuffling, turn sampling, augmentation and dropout on.

    Attributes:
        options: Of the recipe, beside those of every drill.
        ranks: Processes, started by torchrun if there are several.
    """

    model: Path
    data: Path
    out: Path
    options: dict[str, object] = field(default_factory=dict)
    ranks: int = 1

    def words(self) -> list[str]:
        """The command."""
        options = {
            "model_name_or_path": self.model, "data": self.data, "output_dir": self.out, "dtype": "float32",
            "use_cpu": "true", "max_steps": 30, "logging_steps": 3, "learning_rate": 1e-3, "save_strategy": "steps",
            "save_steps": 4, "save_total_limit": 2, "gradient_checkpointing": "false", "turns_per_image": 4,
            "max_tokens_per_row": 600, "lora_dropout": 0.1, "image_ops": "shift:4", "disable_tqdm": "true",
            "per_device_train_batch_size": 2 // self.ranks, "dataloader_num_workers": 0, "report_to": "none",
            **self.options,
        }  # fmt: skip
        start = [sys.executable]
        if self.ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.ranks)]
        return [*start, str(RECIPE), *[str(word) for name, value in options.items() for word in (f"--{name}", value)]]

    def start(self) -> "Process":
        """Start it in a group of processes of its own."""
        return Process(self.words())

    def finish(self, code: int = 0) -> str:
        """Run it to its end; its output, after checking its exit code."""
        process = self.start()
        assert process.wait() == code, process.output()
        return process.output()

    def history(self) -> list[dict[str, float]]:
        """Every logged loss and every evaluation, without what depends on the clock."""
        history = json.loads((self.out / "trainer_state.json").read_text())["log_history"]
        learned = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy", "eval_cider")
        lines = [{name: entry[name] for name in learned if name in entry} for entry in history]
        return [line for line in lines if len(line) > 1]

    def losses(self) -> dict[int, float]:
        """Every logged loss by its step."""
        return {entry["step"]: entry["loss"] for entry in self.history() if "loss" in entry}

    def adapter(self) -> dict[str, torch.Tensor]:
        """The final adapter."""
        return load_file(self.out / "adapter_model.safetensors")

    def run_id(self) -> str:
        """The id of the run in its output folder."""
        return json.loads((self.out / "run.json").read_text())["id"]

    def state(self) -> str:
        """`running`, `stopped` or `finished`."""
        return json.loads((self.out / "run.json").read_text())["state"]


class Process:
    """A started program whose output goes to a file."""

    def __init__(self, words: list[str]) -> None:
        self.log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - lives as long as the process
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            words, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    def output(self) -> str:
        """What it has printed so far."""
        return Path(self.log.name).read_text(errors="replace")

    def wait_until(self, happened: Callable[[], bool], every: float = 0.02) -> None:
        """Return when it has happened, or the process has ended; looks so often (seconds)."""
        end = time.monotonic() + PATIENCE
        while not happened() and self.process.poll() is None:
            assert time.monotonic() < end, f"hangs:\n{self.output()}"
            time.sleep(every)

    def wait_for(self, text: str) -> None:
        """Return when it has printed the text, or has ended."""
        self.wait_until(lambda: text in self.output())

    def wait(self) -> int:
        """Its exit code; a process that hangs is killed and fails the drill."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"hangs:\n{self.output()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9 of it and of everything it has started; torchrun's ranks have sessions of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            for process in [*launcher.children(recursive=True), launcher]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def kill_at_random(drill: Drill, rng: random.Random, longest: float) -> bool:
    """Start a drill and kill it within `longest` seconds of its next checkpoint, or, one time in five, of its start.

    Returns:
        Whether it was still running.
    """
    before = last_complete(drill.out)
    process = drill.start()
    if before is None or rng.random() < 0.8:
        process.wait_until(lambda: last_complete(drill.out) != before)
    try:
        process.process.wait(rng.uniform(0, longest))
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        return True


def check_usable(out: Path) -> None:
    """Whatever has a checkpoint's name is a whole checkpoint."""
    for folder in list_checkpoints(out):
        check_checkpoint(folder)
    if list_checkpoints(out):
        assert last_complete(out) == list_checkpoints(out)[0]
