"""Data folders whose images lie in shards, here or on an object store: their index, and images read by it.

Such a folder holds, beside its tables, WebDataset shards (`train-000000.tar` and so on) and the index
`shards.parquet`, which says where in which shard the bytes of every image lie. The index stands for the image root: an
image is named `.../shards.parquet/<its name>`, so that whatever names and reads images does so as in a folder. Nothing
is unpacked.
"""

import functools
import hashlib
import json
import os
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from sarlang_sft.errors import InputError
from sarlang_sft.object_store import Stored, StoreError, check_url, download, is_url, read_manifest_bytes
from sarlang_sft.records import MANIFEST, SHARD_INDEX, SPLITS, read_manifest
from sarlang_sft.shard_cache import cached_shard, is_whole
from sarlang_sft.whole_output import CannotWriteError, whole_file

TABLES = (*(f"{split}.parquet" for split in SPLITS), SHARD_INDEX)
DEFAULT_CACHE = "~/.cache/sarlang_sft"
DEFAULT_CACHE_GB = 100.0
LARGEST_IMAGE = 2**30  # bytes
INDEX_SCHEMA = pa.schema(
    [("image", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("length", pa.int64())]
)
_SHARD_NAME = re.compile(r"(train|val|test)-\d{6,}\.tar")


class Place(NamedTuple):
    """Where the bytes of an image lie: the number of the shard, and `length` bytes from `offset` on."""

    shard: int
    offset: int
    length: int


@dataclass
class Shards:
    """The shards of a data folder.

    Attributes:
        url: The folder on its store; None: the shards lie beside the index.
        limit: Bytes that the cache may take.
        failed: Why a shard could not be had; it is not asked for again by this process.
        waiting: Held by the thread that fetches a shard.
    """

    folder: Path
    stored: list[Stored]
    places: dict[str, Place]
    url: str | None
    limit: int
    failed: dict[int, str] = field(default_factory=dict)
    waiting: dict[int, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def fetch(self, number: int) -> Path:
        """The local file of a shard; raises [`StoreError`] if it cannot be had."""
        stored = self.stored[number]
        if self.url is None:
            path = self.folder / stored.name
            if not is_whole(path, stored):
                raise StoreError(f"{path}: is missing or has not {stored.bytes:,} bytes; copy it again")
            return path
        with self.waiting[number]:
            if number in self.failed:
                raise StoreError(self.failed[number])
            try:
                return cached_shard(self.folder, self.url, stored, self.limit)
            except StoreError as error:
                self.failed[number] = str(error)
                raise

    def check_room(self, at_once: int) -> None:
        """Raise [`InputError`] if the cache cannot hold so many shards of `train`, or all that there are."""
        sizes = [stored.bytes for stored in self.stored if stored.name.startswith("train")]
        needed = min(sum(sizes), at_once * max(sizes, default=0))
        if self.url and needed > self.limit:
            raise InputError(
                f"shard_cache_gb {self.limit / 1e9:g}: the ranks of this machine need up to {needed / 1e9:.3g} GB of "
                "shards at once; raise it, lower shard_window, or write smaller shards"
            )

    def place_of(self, image: str) -> Place:
        """Where an image lies, by its name in the tables or in a path; raises FileNotFoundError if it does not."""
        place = self.places.get(os.path.normpath(image))
        if place is None:
            raise FileNotFoundError(f"{image} is in no shard")
        return place

    def read(self, image: str) -> bytes:
        """The bytes of an image's file.

        Raises:
            FileNotFoundError: The index has no such image.
            StoreError: Its shard cannot be had.
        """
        place = self.place_of(image)
        for _ in range(10):
            path = self.fetch(place.shard)
            try:
                file = open(path, "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:  # another process needed its room
                continue
            with file:
                if self.url:
                    os.utime(file.fileno())
                return os.pread(file.fileno(), place.length, place.offset)
        raise StoreError(f"{self.stored[place.shard].name}: is removed as soon as it is fetched; raise shard_cache_gb")


def in_shards(path: Path) -> bool:
    """Whether a path names an image of an index rather than a file."""
    return SHARD_INDEX in path.parts


def read_from_shards(path: Path) -> bytes:
    """The bytes of an image that [`in_shards`] holds of."""
    cut = path.parts.index(SHARD_INDEX) + 1
    return read_shards_of(Path(*path.parts[:cut]).parent).read("/".join(path.parts[cut:]))


def read_shards_of(folder: Path) -> Shards:
    """The shards of a data folder, here or in the cache; read once per process, and again if they are written anew.

    Raises:
        InputError: It has none, or its index is no valid one.
    """
    try:
        stat = (folder / SHARD_INDEX).stat()
    except OSError as error:
        raise InputError(f"{folder / SHARD_INDEX}: cannot be read ({error}); write the shards again") from error
    return read_index(folder, stat.st_ino, stat.st_mtime_ns)


@functools.cache
def read_index(folder: Path, inode: int, changed: int) -> Shards:
    """[`read_shards_of`] while the index is the same file: places of another would show other images."""
    stored = _stated(read_manifest(folder), str(folder))["shards"]
    path = folder / SHARD_INDEX
    try:
        index = pq.read_table(path, columns=INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: is no whole index ({error}); write the shards again") from error
    lengths = pa.array([shard.bytes for shard in stored], pa.int64())
    outside = pc.or_(pc.less(index["shard"], 0), pc.greater_equal(index["shard"], len(stored)))
    if pc.any(outside).as_py():
        raise InputError(f"{path}: names a shard that the manifest does not; write the shards again")
    behind = pc.greater(pc.add(index["offset"], index["length"]), lengths.take(index["shard"].combine_chunks()))
    wrong = [pc.less(index[name], 0) for name in ("offset", "length")] + [pc.greater(index["length"], LARGEST_IMAGE)]
    if pc.any(functools.reduce(pc.or_, wrong, behind)).as_py():
        raise InputError(f"{path}: a place lies outside of its shard; write the shards again")
    columns = [index[name].to_pylist() for name in INDEX_SCHEMA.names]
    places = {os.path.normpath(image): Place(*place) for image, *place in zip(*columns, strict=True)}
    store, url, limit = _store_file(folder), None, 0
    if store.is_file():
        content = json.loads(store.read_text(encoding="utf-8"))
        url, limit = content["url"], content["limit"]
    return Shards(folder, stored, places, url, limit)


@functools.cache
def data_folder(path: str, cache: str | None = None, cache_gb: float | None = None) -> Path:
    """The folder of an option `data`: a local one as it is; of a URL its tables, fetched to the cache once.

    Args:
        cache: Folder for what is fetched; None: `DEFAULT_CACHE`.
        cache_gb: Size that its shards may take; None: what a training there has said, else `DEFAULT_CACHE_GB`.

    Raises:
        InputError: There is no data folder in shards at the URL, or it cannot be fetched.
    """
    if not is_url(path):
        return Path(path)
    check_url(path)
    url, root = path.rstrip("/"), Path(cache or DEFAULT_CACHE).expanduser().absolute()
    try:
        content = read_manifest_bytes(f"{url}/{MANIFEST}")
    except FileNotFoundError:
        raise InputError(
            f"data {url}: there is no {MANIFEST}; upload a folder written by data_prep/write_shards.py (of WebDataset "
            "shards by others, make a data folder first: data_prep/import_records.py)"
        ) from None
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise InputError(f"data {url}: its {MANIFEST} is no valid JSON ({error}); upload the folder again") from error
    stated = _stated(manifest, url)
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])
    folder = root / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            missing = [table for table in stated["files"] if not is_whole(folder / table.name, table)]
            if missing:
                megabytes = sum(table.bytes for table in missing) / 1e6
                print(f"data {url}: fetching its tables ({megabytes:,.1f} MB) to {folder}", flush=True)
            for table in missing:
                download(f"{url}/{table.name}", folder / table.name, table)
            store, limit = _store_file(folder), int((cache_gb or DEFAULT_CACHE_GB) * 1e9)
            if cache_gb is None and store.is_file():
                limit = json.loads(store.read_text(encoding="utf-8"))["limit"]
            with whole_file(store) as file:
                file.write(json.dumps({"url": url, "limit": limit}).encode())
            with whole_file(folder / MANIFEST) as file:
                file.write(content)
    except StoreError as error:
        raise InputError(f"data {url}: {error}") from error
    except OSError as error:
        raise CannotWriteError(f"shard_cache {root}: cannot be written ({error}); name another folder") from error
    return folder


def _store_file(folder: Path) -> Path:
    """Says where the shards of a folder in the cache come from; beside it, so that no folder by others can say so."""
    return folder.with_name(f".{folder.name}.store.json")


def _stated(manifest: Any, where: str) -> dict[str, list[Stored]]:
    """The `files` and `shards` that a manifest states; names that could lead anywhere else are refused."""
    try:
        stated = {key: [Stored(*(item[name] for name in Stored._fields)) for item in manifest[key]]
                  for key in ("files", "shards")}  # fmt: skip
        sound = all(
            isinstance(one.bytes, int) and one.bytes >= 0 and re.fullmatch(r"[0-9a-f]{64}", one.sha256)
            for one in [*stated["files"], *stated["shards"]]
        )
        sound &= sorted(one.name for one in stated["files"]) == sorted(TABLES)
        sound &= all(_SHARD_NAME.fullmatch(one.name) for one in stated["shards"])
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise InputError(f"data {where}: its {MANIFEST} states no shards; write them with data_prep/write_shards.py")
    return stated
