"""Adapter updates written into a copy of a checkpoint, tensor by tensor: the model is never built."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from tqdm import tqdm

from sarlang_sft.adapter_updates import Rows, Update
from sarlang_sft.errors import InputError
from sarlang_sft.loading import INDEX, stored_files, stored_shapes
from sarlang_sft.safetensors_stream import (
    FLOATS,
    KINDS,
    Stored,
    copy_bytes,
    new_size,
    read_header,
    read_rows,
    row_blocks,
    write_header,
    write_rows,
)

WORKERS = 4  # more than cores: they wait for the disk
SPARE = 64 << 20  # bytes for what stands beside the weights: tokenizer, configurations


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a model's folder.

    Attributes:
        files: Tensors by their names, by file.
        metadata: Of each file.
    """

    folder: Path
    files: dict[Path, dict[str, Stored]]
    metadata: dict[Path, dict[str, str]]

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors by their names."""
        return {name: tensor for tensors in self.files.values() for name, tensor in tensors.items()}


def read_checkpoint(folder: Path) -> Checkpoint:
    """The headers of a checkpoint's files; raises [`InputError`] if one is missing, cut off or no safetensors."""
    stored_shapes(folder)  # refuses what is not whole
    headers = {path: read_header(path) for path in stored_files(folder)}
    return Checkpoint(
        folder,
        {path: tensors for path, (tensors, _) in headers.items()},
        {path: metadata for path, (_, metadata) in headers.items()},
    )


def new_kinds(base: Checkpoint, dtype: str) -> dict[str, str]:
    """The dtype of every merged tensor; `auto` keeps each tensor's own, and integers are always kept."""
    kinds = {name: stored.kind for name, stored in base.tensors.items()}
    if dtype == "auto":
        return kinds
    wanted = KINDS[dtype]
    return {name: wanted if kind in FLOATS else kind for name, kind in kinds.items()}


def check_disk(base: Checkpoint, kinds: dict[str, str], out: Path) -> None:
    """Raise [`InputError`] unless the merged files find room where `out` will be."""
    needed = SPARE + sum(new_size(stored, kinds[name]) for name, stored in base.tensors.items())
    place = next(parent for parent in out.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"--out {out}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; make room or write to "
            "another disk"
        )


def write_merged(base: Checkpoint, updates: dict[str, Update], kinds: dict[str, str], out: Path) -> set[str]:
    """Write weight files of the base's names, with its tensors in its order.

    Computed in float32 and rounded once; what no adapter changes is copied.

    Args:
        kinds: See `new_kinds`.
        out: A folder.

    Returns:
        The names of the tensors that the updates changed, after rounding.

    Raises:
        InputError: A tensor that was not just copied holds a NaN or infinity.
    """
    changed: set[str] = set()
    total = sum(stored.size for stored in base.tensors.values())
    with tqdm(total=total, desc="merging", unit="B", unit_scale=True) as progress, _workers() as pool:
        for path, tensors in base.files.items():
            with open(path, "rb") as source, open(out / path.name, "wb") as target:
                files = source.fileno(), target.fileno()
                places = write_header(files[1], tensors, kinds, base.metadata[path])
                for name, start in places.items():
                    stored, update = tensors[name], updates.get(name)
                    if update is None and kinds[name] == stored.kind:
                        copy_bytes(*files, stored, start)
                    elif _write_updated(files, name, stored, start, update, kinds[name], pool):
                        changed.add(name)
                    progress.update(stored.size)
    index = base.folder / INDEX
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        if "total_size" in content.get("metadata", {}):
            sizes = (new_size(stored, kinds[name]) for name, stored in base.tensors.items())
            content["metadata"]["total_size"] = sum(sizes)
        (out / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return changed


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that each go through blocks of their own.

    torch's threads would wait for each other after every operation on a block, which is long on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _write_updated(
    files: tuple[int, int],
    name: str,
    stored: Stored,
    start: int,
    update: Update | None,
    kind: str,
    pool: ThreadPoolExecutor,
) -> bool:
    """Write a tensor with its update from byte `start` of another file on; whether that changed it."""
    rows, dtype = Rows(update) if update else None, FLOATS[kind]
    row_size = stored.rows_and_columns()[1] * dtype.itemsize
    changed = Event()  # once it is, comparing the other blocks would cost as much as computing them

    def write(block: tuple[int, int]) -> None:
        first, count = block
        before = read_rows(files[0], stored, first, count)
        after = before.to(torch.float32, copy=True)
        after = (rows.apply(after, first) if rows else after).to(dtype)
        low, high = torch.aminmax(after)  # a NaN becomes both
        if not (low.isfinite() and high.isfinite()):  # 16 bits may hold no such number
            raise InputError(
                f"{name}: merged in {kind}, it holds values that are no numbers; nothing was written. Merge with "
                "--dtype float32; if it is said then too, the adapter or the base is damaged"
            )
        write_rows(files[1], start + first * row_size, after)
        if rows and not changed.is_set() and not torch.equal(after, before.to(dtype)):
            changed.set()

    for _ in pool.map(write, row_blocks(stored)):
        pass
    return changed.is_set()


def check_written(base: Checkpoint, kinds: dict[str, str], folder: Path) -> None:
    """Compare what lies on the disk with the base; raises [`InputError`] if files, names, shapes or dtypes differ."""
    written = read_checkpoint(folder)
    if [path.name for path in written.files] != [path.name for path in base.files]:
        raise InputError(f"{folder}: the merged weight files are not those of {base.folder}; nothing was written")
    for path, tensors in base.files.items():
        wanted = {name: (kinds[name], stored.shape) for name, stored in tensors.items()}
        found = {name: (stored.kind, stored.shape) for name, stored in written.files[folder / path.name].items()}
        if found != wanted:
            wrong = next(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise InputError(f"{path.name}: merged, {wrong} is not what the base has; nothing was written")
