"""Reading the files of offline runs: wandb writes records of protobuf into a log in LevelDB's format."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto.wandb_internal_pb2 import Record

HEADER = struct.Struct("<4sHB")  # ":W&B", 0xBEE1, version
PIECE = struct.Struct("<IHB")  # checksum, length, type
BLOCK = 32 * 1024  # bytes; no piece crosses a border, what is too short for a piece's head stays unused
WHOLE, LAST = 1, 4  # types; the first and middle pieces of a record are 2 and 3


def read_records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file; one that breaks off at its end is left out."""
    content, position, record = path.read_bytes(), HEADER.size, b""
    assert HEADER.unpack_from(content)[:2] == (b":W&B", 0xBEE1)
    while position + PIECE.size <= len(content):
        if BLOCK - position % BLOCK < PIECE.size:
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = PIECE.unpack_from(content, position)
        start = position + PIECE.size
        piece, position = content[start : start + length], start + length
        if len(piece) < length:
            return
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        record += piece
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""


class Attempt(NamedTuple):
    """What one folder holds: the run's id and names, its configuration, logged lines, system metrics, artifacts."""

    id: str
    name: str
    project: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    system: set[str]
    steps: dict[str, str]
    artifacts: list[dict[str, Path]]
    exit_code: int | None


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_attempt(path: Path) -> Attempt:
    """The whole of a `.wandb` file; `steps` names the axis of every metric that has been defined."""
    attempt = Attempt("", "", "", {}, [], set(), {}, [], None)
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            attempt = attempt._replace(id=run.run_id, name=run.display_name, project=run.project)
            attempt.config.update(_values(record.run.config.update))
        elif kind == "config":
            attempt.config.update(_values(record.config.update))
        elif kind == "history":
            attempt.history.append(_values(record.history.item))
        elif kind == "stats":
            attempt.system.update(_values(record.stats.item))
        elif kind == "metric":
            attempt.steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
            attempt.artifacts.append(files)
        elif kind == "exit":
            attempt = attempt._replace(exit_code=record.exit.exit_code)
    return attempt


def read_attempts(folder: Path) -> list[Attempt]:
    """The offline attempts in a folder of wandb, the first first."""
    return [read_attempt(path) for path in sorted(folder.glob("offline-run-*/run-*.wandb"))]
