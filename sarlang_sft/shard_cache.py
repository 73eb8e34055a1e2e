"""A local folder of bounded size for shards that are fetched once for all processes of a machine.

    CACHE/<name>-<hash of the manifest>/            manifest and tables, kept
    CACHE/<name>-<hash of the manifest>/fetched/    shards, the longest unused are removed first

A shard appears whole or not at all; whoever needs one that another process fetches waits for it.
"""

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sarlang_sft.object_store import Stored, download
from sarlang_sft.whole_output import CannotWriteError

FETCHED = "fetched"


def cached_shard(folder: Path, url: str, stored: Stored, limit: int) -> Path:
    """The local file of a shard, fetched if it is not there; it may be removed at any time after this.

    Args:
        folder: That of the data set in the cache.
        url: Of the data set on its store.
        limit: Bytes that all shards in the cache may take.

    Raises:
        StoreError: The store does not have it as it should be.
        CannotWriteError: It cannot be written here.
    """
    path = folder / FETCHED / stored.name
    if is_whole(path, stored):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{stored.name}.lock")):
            if not is_whole(path, stored):
                path.unlink(missing_ok=True)
                _make_room(folder.parent, path, stored, limit)
                download(f"{url}/{stored.name}", path, stored)
    except OSError as error:
        raise CannotWriteError(
            f"shard_cache {folder.parent}: {stored.name} cannot be written ({error}); make room there, lower "
            "shard_cache_gb, or name another folder"
        ) from error
    return path


def is_whole(path: Path, stored: Stored) -> bool:
    """Whether a shard lies there in full length."""
    try:
        return path.stat().st_size == stored.bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make_room(cache: Path, path: Path, stored: Stored, limit: int) -> None:
    """Remove what was unused for longest until a shard fits, and keep its room: its part gets its whole length."""
    own = path.with_name(f".{path.name}.part")
    with FileLock(cache / ".room.lock"):
        own.unlink(missing_ok=True)
        for part in cache.glob(f"*/{FETCHED}/*.part"):
            with suppress(Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
                part.unlink(missing_ok=True)  # whoever fetched it was killed
        found = []
        for file in cache.glob(f"*/{FETCHED}/*"):
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            if file.suffix != ".lock":
                found.append((stat.st_mtime_ns, stat.st_size, file))
        total = sum(size for _, size, _ in found) + stored.bytes
        for _, size, file in sorted(found):
            if total > limit and file.suffix != ".part":
                file.unlink(missing_ok=True)
                total -= size
        with open(own, "wb") as file:
            os.truncate(file.fileno(), stored.bytes)
