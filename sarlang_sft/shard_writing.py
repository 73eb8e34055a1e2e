"""A data folder to one whose images lie in shards: the same records, shuffled once, so that each shard is a sample."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.formats.webdataset import add_member
from sarlang_sft.image_files import path_inside
from sarlang_sft.records import (
    MANIFEST,
    SCHEMA,
    SHARD_INDEX,
    SPLITS,
    Rejection,
    check_not_in_shards,
    count_dialogues,
    file_hash,
    open_split,
    read_manifest,
    to_records,
)
from sarlang_sft.shards import INDEX_SCHEMA, LARGEST_IMAGE, Place
from sarlang_sft.whole_output import Own, whole_folder

REJECTED = "rejected.jsonl"
SHARDED_FOLDER = Own(
    MANIFEST,
    r"(train|val|test|shards)\.parquet|manifest\.json|(rejected|findings)\.jsonl|(train|val|test)-\d{6,}\.tar",
)
NO_SHARD = -1  # of a record without images
HEADER, BLOCK = 512, 512  # bytes of a tar


def write_sharded(data: Path, out: Path, image_root: Path, shard_bytes: int, seed: int) -> dict[str, Any]:
    """Write the records and images of a data folder as shards; the folder appears complete or not at all.

    Every split is shuffled once. Records that share an image stay side by side, in the same shard as far as it has
    room. A shard is a WebDataset shard: per record its JSON and its image files. The tables get a column `shard`.

    Args:
        out: An earlier such folder is replaced, anything else is refused.
        shard_bytes: A shard is closed when it holds as much.
        seed: Of the order.

    Returns:
        The manifest: that of `data`, and the length and SHA-256 of every table (`files`) and shard (`shards`).
        Dialogues whose image is missing are among its rejections.

    Raises:
        InputError: `data` is in shards already, an image cannot be read, or nothing is left.
    """
    check_not_in_shards(data)
    manifest = read_manifest(data)
    if shard_bytes < 1:
        raise InputError("--shard_mb: must be above 0")
    rejections: list[Rejection] = []
    names: list[str] = []  # of shards
    places: dict[str, Place] = {}
    with whole_folder(out, SHARDED_FOLDER) as building:
        tables = []
        for number, split in enumerate(SPLITS):
            with open_split(data, split, SCHEMA.names) as file:
                table = file.read(columns=SCHEMA.names).cast(SCHEMA)
            sizes, missing = _sizes(table, image_root)
            rejections += _rejected(table.take(missing), split)
            kept = np.setdiff1d(np.arange(len(table)), missing)
            order = kept[_shuffled(table.take(kept), np.random.default_rng([seed, number]))]
            shards = _cut(sizes[order], shard_bytes)
            shuffled = table.take(order)
            column = []
            for shard, rows in enumerate(np.split(np.arange(len(order)), shards)):
                if len(rows):
                    names.append(f"{split}-{shard:06d}.tar")
                    records = shuffled.slice(rows[0], len(rows))
                    column += _write_shard(building / names[-1], records, image_root, len(names) - 1, rows[0], places)
            shuffled = shuffled.append_column("shard", pa.array(column, pa.int32()))
            pq.write_table(shuffled, building / f"{split}.parquet")
            tables.append(shuffled)
        if not names:
            raise InputError(f"--data {data}: none of its records can be written; --image_root {image_root} is wrong?")
        _write_index(building / SHARD_INDEX, places)
        counts = count_dialogues(pa.concat_tables(tables))
        accepted = sum(count for subsets in counts.values() for tasks in subsets.values() for count in tasks.values())
        manifest |= {
            "accepted": accepted,
            "rejected": dict(Counter(manifest["rejected"]) + Counter(rejection.reason for rejection in rejections)),
            "counts": counts,
            "image_root": SHARD_INDEX,
            "files": [_state(building / name) for name in (*(f"{split}.parquet" for split in SPLITS), SHARD_INDEX)],
            "shards": [_state(building / name) for name in names],
        }
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        earlier = data / REJECTED
        with open(building / REJECTED, "w", encoding="utf-8") as file:
            file.write(earlier.read_text(encoding="utf-8") if earlier.is_file() else "")
            file.writelines(json.dumps(rejection._asdict()) + "\n" for rejection in rejections)
    return manifest


def print_shards(manifest: dict[str, Any]) -> None:
    """How many shards each split has, and how large they are."""
    for split in SPLITS:
        sizes = [shard["bytes"] for shard in manifest["shards"] if shard["name"].startswith(split)]
        if sizes:
            total, largest = sum(sizes) / 1e6, max(sizes) / 1e6
            print(f"  {split:5} {total:,.1f} MB in {len(sizes):,} shards of up to {largest:,.1f} MB")


def _sizes(table: pa.Table, image_root: Path) -> tuple[np.ndarray, np.ndarray]:
    """(R,) bytes of the images of every record, and the rows of which an image is missing."""
    sizes, missing = np.zeros(len(table), dtype=np.int64), []
    for row, images in enumerate(tqdm(table["images"].to_pylist(), desc="looking for images", unit=" records")):
        try:
            sizes[row] = sum(path_inside(image_root, image).stat().st_size for image in images)
        except (OSError, InputError):
            missing.append(row)
    return sizes, np.array(missing, dtype=np.int64)


def _rejected(table: pa.Table, split: str) -> list[Rejection]:
    return [
        Rejection(f"{split}.parquet", row, ", ".join(record.images), "image not found")
        for row, record in enumerate(to_records(table), 1)
        for _ in record.dialogues
    ]


def _shuffled(table: pa.Table, rng: np.random.Generator) -> np.ndarray:
    """The rows in random order, those that share images side by side."""
    images: dict[str, int] = {}
    pairs = [
        (row, images.setdefault(image, len(images)))
        for row, names in enumerate(table["images"].to_pylist())
        for image in names
    ]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    size = len(table) + len(images)
    links = coo_array((np.ones(len(pairs), dtype=bool), (rows, len(table) + columns)), shape=(size, size))
    group = connected_components(links, directed=False)[1][: len(table)]
    place = rng.permutation(group.max(initial=-1) + 1)
    return np.argsort(place[group], kind="stable")


def _cut(sizes: np.ndarray, shard_bytes: int) -> np.ndarray:
    """Where shards begin behind the first: as few as hold `shard_bytes` each, all of about the same size."""
    total = int(sizes.sum())
    count = max(1, -(-total // shard_bytes))
    return np.searchsorted(np.cumsum(sizes), np.arange(1, count) * total / count)


def _write_shard(
    path: Path, records: pa.Table, image_root: Path, number: int, first: int, places: dict[str, Place]
) -> Iterator[int]:
    """Write a shard, and note where its images lie; for every record the shard that its first image is read from."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, record in enumerate(to_records(records), first):
            add_member(tar, f"{key:09d}.json", json.dumps(asdict(record), ensure_ascii=False).encode())
            several = len(record.images) > 1
            for place, name in enumerate(record.images):
                file = path_inside(image_root, name)
                try:
                    content = file.read_bytes()
                except OSError as error:
                    raise InputError(f"{file}: cannot be read ({error})") from error
                if len(content) > LARGEST_IMAGE:
                    raise InputError(f"{file}: is larger than {LARGEST_IMAGE >> 20} MB; cut it")
                offset = tar.offset + HEADER
                add_member(tar, f"{key:09d}.{f'{place}.' * several}{file.suffix[1:].lower()}", content)
                assert tar.offset == offset + -(-len(content) // BLOCK) * BLOCK
                places.setdefault(name, Place(number, offset, len(content)))
            yield places[record.images[0]].shard if record.images else NO_SHARD


def _write_index(path: Path, places: dict[str, Place]) -> None:
    columns = zip(*places.values(), strict=True) if places else ([], [], [])
    pq.write_table(pa.Table.from_arrays([list(places), *map(list, columns)], schema=INDEX_SCHEMA), path)


def _state(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
