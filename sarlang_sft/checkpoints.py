"""Checkpoints that are complete or absent.

A checkpoint is written under another name, every file is flushed to the disk, a list of them with their checksums
seals it, and only then it gets its name. What a kill or a full disk leaves behind has no name and no seal.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from sarlang_sft.errors import InputError
from sarlang_sft.ranks import Ranks
from sarlang_sft.records import file_hash
from sarlang_sft.whole_output import CannotWriteError, put_in_place

SEAL = "checkpoint.json"
VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFT_OVER = re.compile(r"\.checkpoint-\d+\.(part|old)")


class BrokenCheckpointError(InputError):
    """A checkpoint lacks a file, or one of its files is not what was written."""


class Seal(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        step: Steps of the optimiser that it holds.
        files: Size in bytes and SHA-256 of every file by its path.
        facts: What the run was made of, see `run_facts`.
    """

    step: int
    files: dict[str, tuple[int, str]]
    facts: dict[str, Any]


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(_NAME.fullmatch(folder.name)[1])


def list_checkpoints(out: Path) -> list[Path]:
    """Everything named `checkpoint-N` in an output folder, the newest first, complete or not."""
    found = [path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def last_complete(out: Path) -> Path | None:
    """The newest checkpoint in an output folder whose files are all there in full; their content is not read."""
    for folder in list_checkpoints(out):
        try:
            _check_sizes(folder, read_seal(folder))
        except (BrokenCheckpointError, OSError):  # the run may be removing it at this moment
            continue
        return folder
    return None


def read_seal(folder: Path) -> Seal:
    """What a checkpoint says of itself.

    Raises:
        BrokenCheckpointError: It has no seal, or one that cannot be read.
        InputError: A newer version of this project wrote it.
    """
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        version = content["version"]
        if version > VERSION:
            raise InputError(
                f"{folder}: was written by a newer version of this project (format {version}, known is {VERSION}); "
                "update the project"
            )
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        return Seal(content["step"], files, content["facts"])
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{folder}: is no complete checkpoint ({SEAL} is missing)") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{folder}: {SEAL} cannot be read ({error})") from error


def check_checkpoint(folder: Path) -> Seal:
    """Read a checkpoint whole and compare it with its seal.

    Raises:
        BrokenCheckpointError: A file is missing or not what was written.
        InputError: A newer version of this project wrote it.
    """
    seal = read_seal(folder)
    try:
        _check_sizes(folder, seal)
        with ThreadPoolExecutor(max_workers=8) as threads:
            found = threads.map(file_hash, (folder / name for name in seal.files))
            for (name, (_, expected)), digest in zip(seal.files.items(), found, strict=True):
                if digest != expected:
                    raise BrokenCheckpointError(f"{folder}: {name} is damaged (its checksum differs)")
    except OSError as error:
        raise BrokenCheckpointError(f"{folder}: cannot be read ({error})") from error
    return seal


def _check_sizes(folder: Path, seal: Seal) -> None:
    """Raise unless the folder holds exactly these files: what else lay there would be unpickled unchecked.

    Hidden files are none that anything reads: file systems leave `.nfs0000...` or `.DS_Store`.
    """
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}
    if foreign := held - seal.files.keys() - {SEAL}:
        raise BrokenCheckpointError(f"{folder}: {min(foreign)} was not written with it; move it elsewhere")
    for name, (size, _) in seal.files.items():
        path = folder / name
        if not path.is_file():
            raise BrokenCheckpointError(f"{folder}: {name} is missing")
        if path.stat().st_size != size:
            raise BrokenCheckpointError(f"{folder}: {name} has {path.stat().st_size:,} bytes, not {size:,}")


@contextmanager
def new_checkpoint(out: Path, step: int, facts: dict[str, Any], ranks: Ranks) -> Iterator[Path]:
    """A folder that all ranks fill; it becomes `out/checkpoint-N` when the block ends well on all of them.

    Raises:
        CannotWriteError: It could not be written; what was there is unchanged.
    """
    target, building = out / f"checkpoint-{step}", out / f".checkpoint-{step}.part"
    with told_what_is_left(out, target.name):
        try:
            if ranks.first:
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir(parents=True)
            ranks.wait()
            yield building
            ranks.wait()
            seen = {path.relative_to(building).as_posix() for path in building.rglob("*") if path.is_file()}
            names = sorted(set().union(*ranks.gather(seen)))  # network file systems show some ranks a file later
            own = {
                name: {"bytes": _flush(building / name), "sha256": file_hash(building / name)}
                for name in names[ranks.own :: ranks.count]
            }
            entries = {name: entry for part in ranks.gather(own) for name, entry in part.items()}
            if ranks.first:
                content = {"version": VERSION, "step": step, "files": dict(sorted(entries.items())), "facts": facts}
                (building / SEAL).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                _flush(building / SEAL)
                for folder in [*(path for path in building.rglob("*") if path.is_dir()), building]:
                    _flush(folder)
                put_in_place(building, target)
                _flush(out)
            ranks.wait()
        finally:
            if ranks.first:
                shutil.rmtree(building, ignore_errors=True)


@contextmanager
def told_what_is_left(out: Path, what: str) -> Iterator[None]:
    """Turn the errors of writing into an output folder into one that says how to go on.

    Raises:
        CannotWriteError: Something could not be written: the disk is full, or out of reach.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # where torch.save writes
            raise
        last, free = last_complete(out), shutil.disk_usage(out).free / 1e6
        raise CannotWriteError(
            f"output_dir {out}: {what} cannot be written ({str(error).splitlines()[0]}; {free:,.1f} MB are "
            "free there); "
            f"{f'{last.name} is the last complete checkpoint' if last else 'there is no complete checkpoint'}. Make "
            "room, and start the same command again"
        ) from error


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that no half of it is ever taken for one."""
    nameless = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(nameless, ignore_errors=True)
    os.rename(folder, nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def remove_left_overs(out: Path) -> None:
    """Remove what killed runs left half-written or half-removed. Only whoever holds the folder's lock may do so."""
    for path in out.glob(".checkpoint-*"):
        if _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def rotate_checkpoints(out: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond `limit`, never the newest and never the best.

    Broken ones do not count and are left for whoever wants to look into them.
    """
    if not limit or limit < 1:
        return
    complete = [folder for folder in list_checkpoints(out) if (folder / SEAL).is_file()]
    kept = {*complete[:1], *(folder for folder in complete if best and folder.resolve() == best.resolve())}
    for folder in complete:
        if folder not in kept and len(kept) < limit:
            kept.add(folder)
        elif folder not in kept:
            remove_checkpoint(folder)


def _flush(path: Path) -> int:
    """Have the disk write a file or folder; its size in bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)
