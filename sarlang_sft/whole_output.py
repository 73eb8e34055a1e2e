"""Output folders and files that are complete or absent, whatever happens while they are written."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sarlang_sft.errors import InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fs.h


class CannotWriteError(InputError):
    """The disk is full, or the place not writable."""


@contextmanager
def whole_folder(out: Path, marker: str | None = None, option: str = "--out") -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when the block ends well.

    Until then, and after an error, a full disk or a kill, `out` is what it was before.

    Args:
        marker: A file that tells an earlier result, which is replaced; without one, `out` must be new or empty.
        option: Names `out` in messages.

    Raises:
        InputError: `out` is a file, or holds something else.
        CannotWriteError: A file in it cannot be written.
    """
    if out.is_file():
        raise InputError(f"{option} {out}: is a file; give the name of a folder")
    if out.exists() and any(out.iterdir()) and not (marker and (out / marker).is_file()):
        why = f"holds other things (no {marker})" if marker else "is not empty"
        raise InputError(f"{option} {out}: exists and {why}; choose another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            building.chmod(0o755)
            yield building
            _put_in_place(building, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise CannotWriteError(f"{out}: cannot be written ({error}); what was there is unchanged") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends well, as [`whole_folder`] does.

    One process may write a path at a time.

    Raises:
        CannotWriteError: It cannot be written.
    """
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


def _put_in_place(new: Path, target: Path) -> None:
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
