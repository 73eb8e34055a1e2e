"""Rows in files: JSON lists, JSON lines and Parquet, written row by row and read back with whatever is broken."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sarlang_sft.errors import InputError
from sarlang_sft.json_items import read_json_items

ROWS_AT_ONCE = 1000


class BrokenRow:
    """Stands for a line that is no JSON."""


def write_lines(folder: Path, split: str, rows: Iterable[dict[str, Any]]) -> None:
    """`<split>.jsonl`, and `<split>_text.jsonl` with the rows that have no image.

    Readers built on `datasets` fix the type of `images` by the first ten megabytes of a file, which must not hold
    empty lists alone.
    """
    with (
        open(folder / f"{split}.jsonl", "w", encoding="utf-8", newline="\n") as with_images,
        open(folder / f"{split}_text.jsonl", "w", encoding="utf-8", newline="\n") as text_only,
    ):
        for row in rows:
            file = with_images if row["images"] else text_only
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for path in (folder / f"{split}.jsonl", folder / f"{split}_text.jsonl"):
        if not path.stat().st_size:
            path.unlink()


def write_list(folder: Path, split: str, rows: Iterable[dict[str, Any]]) -> None:
    """`<split>.json`: one list, a row per line."""
    with open(folder / f"{split}.json", "w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for number, row in enumerate(rows):
            file.write(("," if number else "") + "\n" + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def write_parquet(folder: Path, split: str, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    """`<split>.parquet`."""
    rows = iter(rows)
    with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def read_items(path: Path) -> Iterator[Any]:
    """The rows of a file as parsed; a `BrokenRow` for every line, or sample of a list, that is no JSON.

    A file that begins with `[` is one JSON list, whatever its suffix; any other but `.parquet` holds one row per line.

    Raises:
        InputError: The file as a whole cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
        return
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as text:
        if text.read(4096).lstrip().startswith("["):
            text.seek(0)
            for item in read_json_items(text):
                yield BrokenRow() if item is None else item
            return
    with open(path, "rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                yield BrokenRow()


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error
