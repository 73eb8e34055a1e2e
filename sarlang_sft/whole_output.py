"""Output folders and files that are complete or absent, whatever happens while they are written."""

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sarlang_sft.errors import InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fs.h


class CannotWriteError(InputError):
    """The disk is full, or the place not writable."""


class Own(NamedTuple):
    """What tells an earlier result in a folder: the file `marker`, and `names`, a pattern of everything it holds."""

    marker: str
    names: str


def check_replaceable(out: Path, own: Own | None = None, option: str = "--out") -> None:
    """Raise what [`whole_folder`] would raise of `out`, before the work of filling it."""
    try:
        if out.is_file():
            raise InputError(f"{option} {out}: is a file; give the name of a folder")
        if os.path.ismount(out) or out.resolve() == Path.cwd():
            raise InputError(f"{option} {out}: cannot be replaced as a whole; name a folder inside it")
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        raise CannotWriteError(f"{option} {out}: cannot be used ({error})") from error
    if held and not (own and own.marker in held):
        why = f"holds other things (no {own.marker})" if own else "is not empty"
        raise InputError(f"{option} {out}: exists and {why}; choose another")
    foreign = [name for name in held if own and not re.fullmatch(rf"{own.names}|\..+\.part|\.DS_Store", name)]
    if foreign:
        raise InputError(f"{option} {out}: also holds {foreign[0]!r}, which would be deleted; move it elsewhere")


@contextmanager
def whole_folder(out: Path, own: Own | None = None, option: str = "--out") -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when the block ends well.

    Until then, and after an error, a full disk or a kill, `out` is what it was before.

    Args:
        own: Tells an earlier result, which is replaced; without it, `out` must be new or empty.
        option: Names `out` in messages.

    Raises:
        InputError: `out` is a file, a mount point, the working folder, or holds something else.
        CannotWriteError: A file in it cannot be written.
    """
    check_replaceable(out, own, option)
    out = out.resolve()  # what a link points to is replaced, not the link
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            building.chmod(0o755)
            yield building
            put_in_place(building, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise CannotWriteError(f"{out}: cannot be written ({error}); what was there is unchanged") from error


def check_file(path: Path) -> None:
    """Raise what [`whole_file`] would raise of `path`, before the work of filling it."""
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"--out {path}: is no plain file, which would be replaced; give another name")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends well, as [`whole_folder`] does.

    One process may write a path at a time.

    Raises:
        InputError: `path` is a folder, or no plain file.
        CannotWriteError: It cannot be written.
    """
    check_file(path)
    path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                yield file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"{path}: cannot be written ({error}); what was there is unchanged") from error


def put_in_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; an earlier folder of that name is at `new` afterwards, or gone."""
    if not target.exists():
        os.rename(new, target)
    elif not _exchange(new, target):  # then a kill between the next two lines leaves the old one beside its place
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, aside / target.name)
        os.rename(new, target)
        shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
