"""Checkpoint files read and written piece by piece, by plain file reads: neither whole tensors nor mapped pages.

A safetensors file holds the length of its header in eight bytes, the header as JSON, and the tensors one behind
another (https://github.com/huggingface/safetensors). The library writes whole dictionaries of tensors only.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # by the names that options have
BLOCK = 1 << 20  # elements that are in memory at a time: larger ones leave the caches and are slower
COPIED = 1 << 24  # bytes likewise, of what is copied as it is


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        kind: The format's name of its dtype, such as BF16.
        start: Its first byte, from the start of the file.
        size: Bytes.
    """

    path: Path
    kind: str
    shape: torch.Size
    start: int
    size: int

    def rows_and_columns(self) -> tuple[int, int]:
        """Its shape as a matrix: the first dimension, and all others."""
        rows = self.shape[0] if self.shape else 1
        return rows, self.shape.numel() // rows if rows else 0


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a whole safetensors file in the order of its header, and the header's metadata."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    metadata = entries.pop("__metadata__", {})
    tensors = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        tensors[name] = Stored(path, entry["dtype"], torch.Size(entry["shape"]), 8 + length + start, end - start)
    return tensors, metadata


def write_header(
    file: BinaryIO, tensors: Mapping[str, Stored], kinds: Mapping[str, str], metadata: dict[str, str]
) -> None:
    """Begin a file with tensors of the same names, order and shapes.

    Args:
        kinds: Their dtypes in the new file; the tensors must follow in the order of `in_file_order`.
    """
    spans: dict[str, list[int]] = {}
    end = 0
    for name in in_file_order(tensors):
        start, end = end, end + new_size(tensors[name], kinds[name])
        spans[name] = [start, end]
    entries = {
        name: {"dtype": kinds[name], "shape": list(stored.shape), "data_offsets": spans[name]}
        for name, stored in tensors.items()
    }
    header = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries}, separators=(",", ":"))
    content = header.encode()
    content += b" " * (-len(content) % 8)  # the tensors begin at a multiple of eight bytes
    file.write(struct.pack("<Q", len(content)) + content)


def in_file_order(tensors: Mapping[str, Stored]) -> list[str]:
    """Names in the order in which the tensors lie in their file."""
    return sorted(tensors, key=lambda name: (tensors[name].start, tensors[name].size))


def new_size(stored: Stored, kind: str) -> int:
    """Bytes of a tensor if it is kept in this dtype."""
    return stored.size if kind == stored.kind else stored.shape.numel() * FLOATS[kind].itemsize


def read_rows(file: BinaryIO, stored: Stored, first: int, count: int) -> torch.Tensor:
    """(count, columns) of a tensor of floats in its own dtype, from row `first` on; `file` is its open file."""
    columns = stored.rows_and_columns()[1]
    dtype = FLOATS[stored.kind]
    if not count * columns:
        return torch.empty(count, columns, dtype=dtype)
    content = bytearray(count * columns * dtype.itemsize)
    file.seek(stored.start + first * columns * dtype.itemsize)
    if file.readinto(content) != len(content):
        raise OSError(f"{stored.path} ends in the middle of a tensor")
    return torch.frombuffer(content, dtype=dtype).view(count, columns)


def row_blocks(stored: Stored) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the blocks that a tensor is gone through in."""
    rows, columns = stored.rows_and_columns()
    step = max(1, BLOCK // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def read_tensor(stored: Stored) -> torch.Tensor:
    """A whole tensor in float32, as a matrix of (rows, columns)."""
    with open(stored.path, "rb") as file:
        return read_rows(file, stored, 0, stored.rows_and_columns()[0]).float()


def copy_bytes(source: BinaryIO, stored: Stored, target: BinaryIO) -> None:
    """Append a tensor to another file as it is."""
    source.seek(stored.start)
    left = stored.size
    while left:
        content = source.read(min(left, COPIED))
        if not content:
            raise OSError(f"{stored.path} ends in the middle of a tensor")
        target.write(content)
        left -= len(content)


def write_rows(target: BinaryIO, rows: torch.Tensor) -> None:
    """Append rows in their own dtype."""
    target.write(memoryview(rows.contiguous().flatten().view(torch.uint8).numpy()))
