"""WebDataset: tar shards with the JSON and the image files of every record, under one key."""

import filecmp
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.formats.rows import BadRow, Row, Sample, read_row
from sarlang_sft.image_files import IMAGE_SUFFIXES, path_inside
from sarlang_sft.records import Turn

LARGEST_JSON = 64 * 2**20  # bytes; it is parsed in memory
LARGEST_IMAGE = 2**30  # bytes
INCOMING = ".incoming"
_NAME = re.compile(
    r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL
)  # key and the rest, parted at the first dot as webdataset does


def write_shards(folder: Path, split: str, samples: Iterable[Sample], image_root: Path, shard_size: int) -> None:
    """`<split>-000000.tar` and so on, each with `shard_size` records; the same records give the same bytes.

    Args:
        image_root: Where the image files of the records lie.
    """
    samples = iter(samples)
    for shard in count():
        batch = list(islice(samples, shard_size))
        if not batch:
            return
        with tarfile.open(folder / f"{split}-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, sample in enumerate(batch, shard * shard_size):
                text = json.dumps(asdict(sample.record), ensure_ascii=False).encode()
                add_member(tar, f"{number:09d}.json", text)
                several = len(sample.record.images) > 1
                for place, name in enumerate(sample.record.images):
                    path = image_root / name
                    suffix = f"{place}{path.suffix}" if several else path.suffix[1:]
                    try:
                        content = path.read_bytes()
                    except OSError as error:
                        raise InputError(f"{path}: cannot be read ({error})") from error
                    add_member(tar, f"{number:09d}.{suffix.lower()}", content)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without time, owner or rights of this machine, so that the same records give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


@dataclass
class _Parts:
    """What a shard holds under one key, as far as it was read."""

    key: str
    document: bytes | None = None
    images: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_shards(path: Path, image_root: Path) -> Iterator[Row]:
    """The dialogues of a shard, whose images are written below `image_root`.

    A member's name is never followed: our own JSON says where an image belongs, and of others the key does, and either
    is refused if it leads out of `image_root`. Links, devices and files of improbable size are rows with a problem.
    """
    number = count(1)
    for parts in _read_parts(path, image_root / INCOMING):
        if isinstance(parts, Row):
            yield Row(next(number), parts.images, problem=parts.problem)
            continue
        for row in _rows(parts, image_root):
            yield replace(row, number=next(number), left_out=row.left_out + parts.left_out)
            parts.left_out = []
        for image in parts.images:
            image.unlink(missing_ok=True)
    shutil.rmtree(image_root / INCOMING, ignore_errors=True)


def _read_parts(path: Path, incoming: Path) -> Iterator[_Parts | Row]:
    parts = None
    incoming.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "r:") as tar:  # seeks over what it skips, where a stream reads it
            for number, member in enumerate(tar):
                if member.isdir():
                    continue
                try:
                    key, suffix = _checked(member)
                except BadRow as error:
                    yield Row(0, [member.name], problem=str(error))
                    continue
                if parts is None or parts.key != key:
                    if parts:
                        yield parts
                    parts = _Parts(key)
                file = tar.extractfile(member)
                ending = f".{suffix.rpartition('.')[2].lower()}"
                if ending == ".json":
                    parts.document = file.read()
                elif ending in IMAGE_SUFFIXES:
                    parts.images.append(incoming / f"{number}{ending}")
                    with open(parts.images[-1], "wb") as image:
                        shutil.copyfileobj(file, image)
                else:
                    parts.left_out.append(f"{ending} file of a shard")
                tar.members = []  # or all headers of the shard stay in memory
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        key = [parts.key] if parts else []  # given up: what is there of it may be torn
        yield Row(0, key, problem="shard is broken from here on")
        return
    if parts:
        yield parts


def _checked(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and suffix of a member that may be read."""
    match = _NAME.fullmatch(member.name)
    if not member.isreg() or member.issparse():
        raise BadRow("not a plain file in the shard")
    if not match:
        raise BadRow("name without a key and a suffix in the shard")
    if member.size > (LARGEST_JSON if member.name.lower().endswith(".json") else LARGEST_IMAGE):
        raise BadRow("file too large in the shard")
    return match[1], match[2]


def _rows(parts: _Parts, image_root: Path) -> Iterator[Row]:
    try:
        document = json.loads((parts.document or b"null").decode())
    except (ValueError, RecursionError):
        yield Row(0, [parts.key], problem="broken JSON")
        return
    if not isinstance(document, dict):
        yield Row(0, [parts.key], problem="no JSON of a record for this key")
        return
    dialogues = document.pop("dialogues", None)
    try:
        if isinstance(dialogues, list):
            names = document["images"]
        else:
            names = [f"{parts.key}{_order(parts, place)}{path.suffix}" for place, path in enumerate(parts.images)]
        if len(names) != len(parts.images):
            raise BadRow("number of images differs from the record's")
        for path, name in zip(parts.images, names, strict=True):
            _place(path, image_root, name)
    except (BadRow, KeyError, TypeError) as error:
        problem = str(error) if isinstance(error, BadRow) else "wrong columns"
        for _ in dialogues if isinstance(dialogues, list) and dialogues else [None]:
            yield Row(0, [parts.key], problem=problem)
        return
    if not isinstance(dialogues, list):
        document.pop("image", None)
        yield read_row(document | {"images": names}, 0, "", needs_tags=False)
        return
    for dialogue in dialogues:
        try:
            turns = [Turn(turn["question"], turn["answer"]) for turn in dialogue["turns"]]
            yield Row(0, names, turns, own=document | dialogue | {"record": parts.key})
        except (KeyError, TypeError):
            yield Row(0, names, problem="wrong columns")


def _order(parts: _Parts, place: int) -> str:
    return f"_{place}" if len(parts.images) > 1 else ""


def _place(path: Path, image_root: Path, name: Any) -> None:
    """Move an image to `image_root / name`, unless the same lies there already."""
    if not isinstance(name, str) or INCOMING in Path(name).parts:
        raise BadRow("wrong columns")
    if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        raise BadRow("not an image file")
    try:
        target = path_inside(image_root, name)
        same = not target.exists() or filecmp.cmp(path, target, shallow=False)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    except InputError as error:
        raise BadRow("path leaves the image root") from error
    except (OSError, ValueError) as error:
        raise BadRow("image cannot be written") from error
    if not same:
        raise BadRow("two images of this name")
