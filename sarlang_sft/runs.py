"""The output folder as the home of one run: its lock, its id, and where it goes on."""

import json
import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.checkpoints import (
    BrokenCheckpointError,
    check_checkpoint,
    list_checkpoints,
    read_seal,
    remove_left_overs,
    step_of,
)
from sarlang_sft.errors import InputError
from sarlang_sft.locks import HeldElsewhereError, sign_lock, take_lock
from sarlang_sft.ranks import Ranks
from sarlang_sft.run_facts import SCHEDULE, Difference, Facts, check_alike, collect_facts, find_differences
from sarlang_sft.run_files import FINISHED, LOCK, RUN, RUNNING, STOPPED
from sarlang_sft.signals import ignore_signals, leave_at_once
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.whole_output import whole_file

FACTS = {
    "options",
    "base",
    "data",
    "world_size",
    "rows_per_step",
    "deepspeed",
    "versions",
    "run_id",
}  # that are compared


@dataclass
class Run:
    """A run in its output folder.

    Attributes:
        id: Stays the same as often as the run is resumed.
        checkpoint: Where it goes on; None at the start.
        facts: What it is made of; every checkpoint keeps them.
        cut_off: The process before this one was killed.
        lock: Held on rank 0 until the process ends, however it ends.
    """

    folder: Path
    id: str
    checkpoint: Path | None
    facts: Facts
    ranks: Ranks
    cut_off: bool
    lock: BinaryIO | None

    def leave(self, state: str) -> None:
        """Note that the run was stopped on request, or is finished; then no signal says otherwise any more."""
        if state == FINISHED:
            ignore_signals()
        if self.ranks.first:
            _write(self.folder, self.id, state, self.facts)


class Entry(NamedTuple):
    """What rank 0 found in the output folder."""

    id: str
    checkpoint: Path | None
    cut_off: bool
    lock: BinaryIO | None


def open_run(model: ModelArguments, tuning: TuningArguments, data: DataArguments, training: TrainArguments) -> Run:
    """[`enter_run`] of a model's tuning; ends the program with exit code 0 if the run is finished already."""
    run = enter_run(collect_facts(model, tuning, data, training), training)
    if run is None:
        sys.exit(0)
    return run


def enter_run(facts: Facts, training: TrainArguments) -> Run | None:
    """Make the output folder this run's, and find where it goes on by the option `resume`; None if it is finished.

    Args:
        facts: What the run is made of, see `run_facts`.

    Raises:
        InputError: Another process runs there, what is there cannot be gone on with, or it cannot be written. Nothing
            has been written then.
    """
    ranks = Ranks(timedelta(seconds=training.ddp_timeout))
    check_alike(ranks.gather(facts), ranks.gather(socket.gethostname()))
    out = Path(training.output_dir)
    entry = ranks.on_first(lambda: _enter(out, training.resume, facts))
    lock = entry.lock if entry else None
    shared = ranks.from_first(entry and entry._replace(lock=None))
    if shared is None:
        return None
    run_id, checkpoint, cut_off, _ = shared
    seen = ranks.gather(None if sees(out, run_id) else socket.gethostname())
    if blind := [f"rank {rank} on {host}" for rank, host in enumerate(seen) if host]:
        raise InputError(f"output_dir {out}: {blind[0]} does not see it; put it on a file system that all nodes share")
    training.run_name = training.run_name or f"{out.resolve().name}-{run_id}"
    run = Run(out, run_id, checkpoint, {**facts, "run_id": run_id}, ranks, cut_off, lock)
    leave_at_once(lambda: run.leave(STOPPED))
    return run


def sees(out: Path, run_id: str, seconds: float = 90) -> bool:
    """Whether this rank finds the run; NFS keeps what it knew of a folder for up to a minute."""
    end = time.monotonic() + seconds
    while _read(out).get("id") != run_id:
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def _enter(out: Path, resume: str, facts: Facts) -> Entry | None:
    """Decide where the run goes on, then take the folder; None if the run is finished."""
    held = _lock(out, create=False)  # closing any handle of the file would release the lock
    earlier = _read(out)
    same_fork = bool(earlier) and _is_fork(resume, out) and earlier["facts"]["options"].get("resume") == resume
    if resume == "never" and (earlier or list_checkpoints(out)):
        raise InputError(
            f"output_dir {out}: holds a run already; go on with it by `--resume auto`, or choose another output_dir"
        )
    checkpoint = (_choose(out, "auto") if same_fork else None) or _choose(out, resume)
    if earlier.get("state") == FINISHED and (resume == "auto" or same_fork):
        differences = find_differences(earlier["facts"], facts)
        longer = any(difference.means == SCHEDULE for difference in differences)
        _refuse(differences, f"output_dir {out}: its run is finished and was made")
        if not longer:
            more = "Train longer with a larger max_steps, or choose" if checkpoint else "To train anew, choose"
            print(f"{out}: this run is finished. {more} another output_dir (or delete this one)")
            return None
        if checkpoint is None:
            raise InputError(
                f"output_dir {out}: its run is finished and left no checkpoint to train longer from (save_strategy "
                f"{earlier['facts']['options']['save_strategy']}); choose another output_dir"
            )
    run_id = earlier.get("id")
    if checkpoint:
        seal = read_seal(checkpoint)
        if missing := FACTS - seal.facts.keys():
            raise InputError(
                f"{checkpoint}: does not say what it was made of ({min(missing)}); choose another output_dir"
            )
        differences = find_differences(seal.facts, facts)
        _refuse(differences, f"resume: {checkpoint} was written")
        here = checkpoint.parent.resolve() == out.resolve()
        if earlier and not here and not same_fork:
            raise InputError(
                f"output_dir {out}: holds another run than {checkpoint}; go on with it by `--resume auto`, or choose "
                "another output_dir"
            )
        run_id = run_id or (seal.facts["run_id"] if here else None)
        print(f"Resuming from {checkpoint}", *differences, sep="\n  ", flush=True)
    elif earlier and any(difference.means is None for difference in find_differences(earlier["facts"], facts)):
        run_id = None  # it left nothing behind, and this is another one
    run_id = run_id or _given_id() or secrets.token_hex(4)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = held or _lock(out, create=True)
        sign_lock(lock)
        remove_left_overs(out)
        if checkpoint and checkpoint.parent.resolve() == out.resolve():
            _set_aside([path for path in list_checkpoints(out) if step_of(path) > step_of(checkpoint)])
        _write(out, run_id, RUNNING, {**facts, "run_id": run_id})
    except OSError as error:
        raise InputError(f"output_dir {out}: cannot be written ({error})") from error
    return Entry(run_id, checkpoint, earlier.get("state") == RUNNING, lock)


def _given_id() -> str | None:
    """The id that an agent of a W&B sweep has given this run."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _is_fork(resume: str, out: Path) -> bool:
    """Whether the run goes on from another one's checkpoint."""
    return resume not in ("auto", "never") and Path(resume).resolve().parent != out.resolve()


def _choose(out: Path, resume: str) -> Path | None:
    """The checkpoint to go on from; prints why broken ones are not taken."""
    if resume not in ("auto", "never"):
        try:
            check_checkpoint(Path(resume))
        except BrokenCheckpointError as error:
            raise InputError(f"resume {resume}: cannot be used: {error}") from error
        return Path(resume)
    for folder in list_checkpoints(out):
        try:
            check_checkpoint(folder)
        except BrokenCheckpointError as error:
            print(f"Left out: {error}", flush=True)
        else:
            return folder
    return None


def _refuse(differences: list[Difference], what: str) -> None:
    if wrong := [str(difference) for difference in differences if difference.means is None]:
        raise InputError(f"{what} otherwise: {'; '.join(wrong)}. Or choose another output_dir")


def _set_aside(checkpoints: list[Path]) -> None:
    """Checkpoints ahead of the chosen one would be taken for its continuation at the next start."""
    for path in checkpoints:
        aside = path.with_name(f"left-{path.name}-{int(time.time())}")
        os.rename(path, aside)
        print(f"{path.name} is ahead of it and is now {aside}", flush=True)


def _read(out: Path) -> dict[str, Any]:
    """The run file; empty if there is none, or none that can be read (its checkpoints know the run's id too)."""
    try:
        content = json.loads((out / RUN).read_text(encoding="utf-8"))
        return content if content.keys() >= {"id", "state", "facts"} and content["facts"].keys() >= FACTS else {}
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return {}
    except OSError as error:
        raise InputError(f"output_dir {out}: {RUN} cannot be read ({error})") from error


def _write(out: Path, run_id: str, state: str, facts: Facts) -> None:
    with whole_file(out / RUN) as file:
        file.write(json.dumps({"id": run_id, "state": state, "facts": facts}, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _lock(out: Path, create: bool) -> BinaryIO | None:
    """Hold the folder until this process ends, however it ends.

    Raises:
        InputError: Another process holds it.
    """
    path = out / LOCK
    if not create and not path.exists():
        return None
    try:
        return take_lock(path)
    except HeldElsewhereError as error:
        raise InputError(f"output_dir {out}: {error} trains there now; wait for it, or choose another") from error
    except OSError as error:
        raise InputError(f"output_dir {out}: cannot be written ({error})") from error
