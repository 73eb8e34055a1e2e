"""A sweep as a whole: its folder taken, or gone on with, its trials run by one of two backends, its report written."""

import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from sarlang_sft.errors import InputError
from sarlang_sft.sweep_files import FREE, Sweep, choose, find_changes, what_counts
from sarlang_sft.sweep_local import run_local
from sarlang_sft.sweep_report import BEST, PICTURE, TABLE, write_report
from sarlang_sft.sweep_search import propose
from sarlang_sft.sweep_wandb import check_login, run_wandb
from sarlang_sft.trial_processes import Slot
from sarlang_sft.trials import STORE, Beginning, Trials

BACKENDS = ("local", "wandb")
LOCK = ".sweep.lock"


class OpenSweep(NamedTuple):
    """A sweep that this process holds until it ends."""

    sweep: Sweep
    out: Path
    trials: Trials
    backend: str
    seed: int
    lock: BinaryIO


def choose_out(sweep: str | None, out: str | None) -> Path:
    """The folder of a sweep."""
    if out is None and sweep is None:
        raise InputError("--sweep: name a sweep file, such as recipes/sweeps/demo.yaml")
    return Path(out) if out is not None else Path("runs/sweeps", Path(sweep).stem)


def visible_gpus() -> list[str]:
    """GPUs by their names in CUDA_VISIBLE_DEVICES."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def open_sweep(sweep: Sweep, out: Path, backend: str, seed: int, ranks: int, retry_failed: bool) -> OpenSweep:
    """Begin a sweep in a folder, or go on with the one that is there.

    Args:
        ranks: Processes of a trial.

    Raises:
        InputError: The search or the backend cannot do it, the folder holds something else or another sweep, or
            another process runs it. Nothing has been written then.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend `{backend}`; {choose(backend, list(BACKENDS))}")
    propose(sweep, [], seed)
    if backend == "wandb":
        check_login()
    counts = json.loads(json.dumps(what_counts(sweep), default=str))
    now = Beginning(str(sweep.path), sweep.text, counts, sweep.configs, seed, ranks, backend)
    store = out / STORE
    if out.exists() and not store.is_file() and any(path.name != LOCK for path in out.iterdir()):
        raise InputError(f"--out {out}: holds something else than a sweep (no {STORE}); choose another")
    before = Trials(store).beginning() if store.is_file() else None
    if before is not None:
        _compare(before, now, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / LOCK, "ab")  # noqa: SIM115 - held until the process ends
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"--out {out}: another process runs this sweep now") from error
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error})") from error
    trials = Trials(store)
    trials.begin(now)
    if retry_failed:
        trials.retry_failed()
    return OpenSweep(sweep, out, trials, backend, seed, lock)


def _compare(before: Beginning, now: Beginning, out: Path) -> None:
    """Say what has changed; raise if trials of before and of now could not be compared."""

    def state(beginning: Beginning) -> dict[str, object]:
        options = {"--seed": beginning.seed, "--nproc_per_node": beginning.nproc, "--backend": beginning.backend}
        return {**beginning.counts, **options}

    changes = find_changes(state(before), state(now))
    if changes:
        raise InputError(f"--out {out}: holds a sweep of other trials ({'; '.join(changes)}); choose another --out")
    if before.text != now.text:
        print(f"{now.path}: has changed since, in nothing of what is tried ({', '.join(FREE)}, comments)", flush=True)


def run_sweep(opened: OpenSweep, slots: list[Slot]) -> bool:
    """Run what is left of its trials; False if it was asked to stop."""
    sweep, out, trials, backend, seed, _ = opened
    if backend == "wandb":
        return run_wandb(sweep, trials, out / "trials", slots)
    group = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", out.name)}
    return run_local(sweep, trials, out / "trials", slots, seed, lambda trial: group)


def report_sweep(out: Path) -> None:
    """Write the report of a sweep from its SQLite file, and print its table.

    Raises:
        InputError: There is none, or it has no trial.
    """
    store = out / STORE
    if not store.is_file():
        raise InputError(f"--out {out}: holds no sweep (no {STORE})")
    best = write_report(Trials(store), out)
    print((out / TABLE).read_text(encoding="utf-8"))
    if best is None:
        print(f"No trial has a score yet: {out / TABLE}")
    else:
        print(f"Best: trial {best.id}; its options: {out / BEST}; picture: {out / PICTURE}")
