"""Checkpoint files read and written piece by piece, by plain file reads: neither whole tensors nor mapped pages.

A safetensors file holds the length of its header in eight bytes, the header as JSON, and the tensors one behind
another (https://github.com/huggingface/safetensors). The library writes whole dictionaries of tensors only.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # by the names that options have
COPIED = 8 << 20  # bytes at once
BLOCK = 1 << 18  # elements of a block: larger ones leave the processor's caches and are slower


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
    file: int, tensors: Mapping[str, Stored], kinds: Mapping[str, str], metadata: dict[str, str]
) -> dict[str, int]:
    """Begin a file with tensors of the same names, order and shapes; where in it each tensor's bytes belong.

    Args:
        file: Descriptor of an empty file.
        kinds: Dtypes in the new file.
    """
    spans: dict[str, list[int]] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (tensors[name].start, tensors[name].size)):
        start, end = end, end + new_size(tensors[name], kinds[name])
        spans[name] = [start, end]
    entries = {
        name: {"dtype": kinds[name], "shape": list(stored.shape), "data_offsets": spans[name]}
        for name, stored in tensors.items()
    }
    header = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries}, separators=(",", ":"))
    content = header.encode()
    content += b" " * (-len(content) % 8)  # the tensors begin at a multiple of eight bytes
    write_bytes(file, 0, struct.pack("<Q", len(content)) + content)
    return {name: 8 + len(content) + start for name, (start, _) in spans.items()}


def new_size(stored: Stored, kind: str) -> int:
    """Bytes of a tensor if it is kept in this dtype."""
    return stored.size if kind == stored.kind else stored.shape.numel() * FLOATS[kind].itemsize


def read_into(content: memoryview, file: int, start: int) -> None:
    """Fill it with bytes of an open file, given by its descriptor; many threads may read at once."""
    if os.preadv(file, [content], start) != len(content):
        raise OSError(f"a file of weights ends at byte {os.fstat(file).st_size}, before {start + len(content)}")


def write_bytes(file: int, start: int, content: bytes | memoryview) -> None:
    """Likewise write them."""
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def copy_bytes(source: int, target: int, stored: Stored, start: int) -> None:
    """Copy a tensor to byte `start` of another file."""
    content = memoryview(bytearray(min(COPIED, stored.size)))
    for done in range(0, stored.size, COPIED):
        part = content[: stored.size - done]
        read_into(part, source, stored.start + done)
        write_bytes(target, start + done, part)


def read_rows(file: int, stored: Stored, first: int, count: int) -> torch.Tensor:
    """(count, columns) of a tensor of floats in its own dtype, from row `first` on; `file` is a descriptor."""
    columns, dtype = stored.rows_and_columns()[1], FLOATS[stored.kind]
    size = count * columns * dtype.itemsize
    if not size:
        return torch.empty(count, columns, dtype=dtype)
    rows = torch.empty(count, columns, dtype=dtype)
    read_into(memoryview(rows.flatten().view(torch.uint8).numpy()), file, stored.start + first * size // count)
    return rows


def row_blocks(stored: Stored) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the blocks that a tensor is gone through in."""
    rows, columns = stored.rows_and_columns()
    step = max(1, BLOCK // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def read_tensor(stored: Stored) -> torch.Tensor:
    """A whole tensor in float32, as a matrix of (rows, columns)."""
    with open(stored.path, "rb") as file:
        return read_rows(file.fileno(), stored, 0, stored.rows_and_columns()[0]).float()


def write_rows(file: int, start: int, rows: torch.Tensor) -> None:
    """Write rows in their own dtype."""
    write_bytes(file, start, memoryview(rows.contiguous().flatten().view(torch.uint8).numpy()))
