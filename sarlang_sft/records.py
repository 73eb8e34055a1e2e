"""The data model: an image with everything said about it, and the data folder that holds many of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarlang_sft.errors import InputError
from sarlang_sft.whole_output import Own, whole_folder

MANIFEST = "manifest.json"
SHARD_INDEX = "shards.parquet"  # stands for the image root where images lie in shards, see `shards`
DATA_FOLDER = Own(
    MANIFEST,
    r"(train|val|test)\.parquet|manifest\.json|(rejected|findings|annotations|rewrites)\.jsonl|card\.md|wording\.yaml",
)
RECORDS_AT_ONCE = 1024  # as Python objects
SPLITS = ("train", "val", "test")
TASKS = (
    "description",
    "identification",
    "classification",
    "counting",
    "referring",
    "positioning",
    "others",
    "grounding",
    "cross_identification",
)


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Turns that depend on each other; dialogues of one image are independent of each other.

    Attributes:
        id: Unique in the data folder.
        subset: Where it comes from: `caption_concise caption_complex vqa1 vqa2 folders` ...
        task: One of `TASKS`.
        style: `concise` or `complex` for captions, for the task `others` its kind where it is known, else None.
    """

    id: str
    subset: str
    task: str
    turns: list[Turn]
    style: str | None = None


@dataclass(frozen=True)
class Box:
    """A labelled box: `points` are `x y w h` or four rotated corners (8 numbers), in pixels of the stored image."""

    label: str
    points: list[float]


@dataclass(frozen=True)
class Record:
    """The images of one sample (usually one; none if text-only) with every box and dialogue about them.

    `images` are paths relative to the data folder's image root; `width` and `height` are pixels of the first.
    """

    images: list[str]
    width: int
    height: int
    source: str
    split: str
    sensor: str | None = None
    resolution_m: float | None = None
    boxes: list[Box] = field(default_factory=list)
    dialogues: list[Dialogue] = field(default_factory=list)


class Rejection(NamedTuple):
    """Why one dialogue was not accepted: `row` counts from 1 in `file`."""

    file: str
    row: int
    image: str
    reason: str


_TURN = pa.struct([("question", pa.string()), ("answer", pa.string())])
_DIALOGUE = pa.struct(
    [
        ("id", pa.string()),
        ("subset", pa.string()),
        ("task", pa.string()),
        ("style", pa.string()),
        ("turns", pa.list_(_TURN)),
    ]
)
_BOX = pa.struct([("label", pa.string()), ("points", pa.list_(pa.float64()))])
_SHARD = pa.field("shard", pa.int32())  # in the tables of data folders in shards
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("sensor", pa.string()),
        ("resolution_m", pa.float64()),
        ("boxes", pa.list_(_BOX)),
        ("dialogues", pa.list_(_DIALOGUE)),
    ]
)


def to_table(records: Iterable[Record]) -> pa.Table:
    """Records as a table of `SCHEMA`."""
    left, batches = iter(records), []
    while some := list(islice(left, RECORDS_AT_ONCE)):
        batches.append(_to_batch(some))
    return pa.Table.from_batches(batches, SCHEMA)


def _to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Column by column, which takes a fraction of the time of row by row."""
    dialogues = [dialogue for record in records for dialogue in record.dialogues]
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    boxes = [box for record in records for box in record.boxes]
    flat_turns = _structs(_TURN, {name: [getattr(turn, name) for turn in turns] for name in _TURN.names})
    points = pa.array([number for box in boxes for number in box.points or ()], pa.float64())
    flat_boxes = _structs(
        _BOX, {"label": [box.label for box in boxes], "points": _lists([box.points for box in boxes], points)}
    )
    plain = {name: [getattr(one, name) for one in dialogues] for name in _DIALOGUE.names if name != "turns"}
    flat_dialogues = _structs(_DIALOGUE, plain | {"turns": _lists([one.turns for one in dialogues], flat_turns)})
    images = pa.array([image for record in records for image in record.images], pa.string())
    nested = {
        "images": _lists([record.images for record in records], images),
        "boxes": _lists([record.boxes for record in records], flat_boxes),
        "dialogues": _lists([record.dialogues for record in records], flat_dialogues),
    }
    columns = [
        nested[one.name]
        if one.name in nested
        else pa.array([getattr(record, one.name) for record in records], one.type)
        for one in SCHEMA
    ]
    return pa.record_batch(columns, SCHEMA)


def _structs(kind: pa.StructType, columns: Mapping[str, Any]) -> pa.StructArray:
    """Structs from lists or arrays by the names of their fields."""
    fields = list(kind)
    values = [columns[one.name] for one in fields]
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, one.type)
        for one, value in zip(fields, values, strict=True)
    ]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def _lists(lists: Sequence[Sequence[Any] | None], values: pa.Array) -> pa.ListArray:
    """The values cut into lists as long as those given; files of others may lack one."""
    offsets = pa.array(np.cumsum([0, *(len(one or ()) for one in lists)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array([one is None for one in lists], pa.bool_()))


def to_records(table: pa.Table | pa.RecordBatch) -> Iterator[Record]:
    """The rows of a table of `SCHEMA` as records."""
    for row in table.to_pylist():
        row["boxes"] = [Box(**box) for box in row["boxes"]]
        row["dialogues"] = [
            Dialogue(**{**dialogue, "turns": [Turn(**turn) for turn in dialogue["turns"]]})
            for dialogue in row["dialogues"]
        ]
        yield Record(**row)


def one_turn_dialogues(flat: pa.Table) -> pa.StructArray:
    """The dialogues of a table with `id, subset, task, style, question, answer`, each of one turn."""
    texts = pa.StructArray.from_arrays([flat[name].combine_chunks() for name in _TURN.names], fields=list(_TURN))
    turns = pa.ListArray.from_arrays(pa.array(range(len(flat) + 1), pa.int32()), texts)
    columns = [flat[name].combine_chunks() for name in _DIALOGUE.names if name != "turns"]
    return pa.StructArray.from_arrays([*columns, turns], fields=list(_DIALOGUE))


def write_data_folder(
    out: Path,
    records: pa.Table,
    rejections: list[Rejection],
    image_root: Path,
    inputs: dict[str, str],
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `train|val|test.parquet`, `manifest.json` and `rejected.jsonl`; the folder appears complete or not at all.

    Args:
        out: The folder; an earlier data folder of this name is replaced, anything else is refused.
        records: Of `SCHEMA`, all splits; see [`to_table`].
        rejections: One for every dialogue that was read and is in no record.
        image_root: What the image paths are relative to.
        inputs: Hash of every input file by its path, for the manifest.
        facts: What else the manifest shall say, by key.
        files: Texts of other files of the folder, by name.

    Returns:
        The manifest.

    Raises:
        InputError: There is no record, `out` is something else, or cannot be written; an earlier folder then stays.
    """
    reasons = Counter(rejection.reason for rejection in rejections)
    if not len(records):
        why = ""
        for reason, _ in reasons.most_common(1):
            example = next(rejection.image for rejection in rejections if rejection.reason == reason)
            why = f"; most often: {reason} (such as {example!r})"
        raise InputError(f"--out {out}: none of {len(rejections)} rows could be used{why}; nothing was written")
    counts = count_dialogues(records)
    accepted = sum(count for subsets in counts.values() for tasks in subsets.values() for count in tasks.values())
    manifest = {
        "read": accepted + len(rejections),
        "accepted": accepted,
        "rejected": dict(reasons),
        "counts": counts,
        "image_root": str(image_root.resolve()),
        "inputs": inputs,
        **(facts or {}),
    }
    with whole_folder(out, DATA_FOLDER) as building:
        for split in SPLITS:
            pq.write_table(records.filter(pc.equal(records["split"], split)), building / f"{split}.parquet")
        (building / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        with open(building / "rejected.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(rejection._asdict()) + "\n" for rejection in rejections)
        for name, text in (files or {}).items():
            (building / name).write_text(text, encoding="utf-8")
    return manifest


def count_dialogues(records: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Dialogues by split, subset and task, in order of appearance."""
    flat = flatten_dialogues(records, ["split"]).select(["split", "subset", "task"])
    grouped = flat.group_by(["split", "subset", "task"], use_threads=False).aggregate([([], "count_all")])
    counts: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for row in grouped.to_pylist():
        counts[row["split"]].setdefault(row["subset"], {})[row["task"]] = row["count_all"]
    return counts


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest of a data folder; raises [`InputError`] if `data` is none."""
    path = Path(data) / MANIFEST
    if not path.is_file():
        raise InputError(
            f"--data {data}: no data folder (manifest.json is missing); make one with data_prep/convert_*.py"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--data {data}: {path} is no valid JSON ({error}); convert the data again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("image_root"), str):
        raise InputError(f"--data {data}: {path} has no `image_root` as converters write it; convert the data again")
    return manifest


def check_not_in_shards(data: Path) -> None:
    """Raise [`InputError`] if the images of a data folder lie in shards, for what needs them as files."""
    if read_manifest(data)["image_root"] == SHARD_INDEX:
        raise InputError(f"--data {data}: its images lie in shards; give the folder that these were written from")


def print_manifest(manifest: dict[str, Any]) -> None:
    """Counts per split, subset and task, and what was rejected why."""
    for split, subsets in manifest["counts"].items():
        for subset, tasks in subsets.items():
            listed = ", ".join(f"{task} {count:,}" for task, count in sorted(tasks.items()))
            print(f"  {split:5} {subset:16} {sum(tasks.values()):>9,}  ({listed})")
    rejected = sum(manifest["rejected"].values())
    print(f"  read {manifest['read']:,} = accepted {manifest['accepted']:,} + rejected {rejected:,}")
    for reason, count in manifest["rejected"].items():
        print(f"  rejected: {reason} {count:,} (see rejected.jsonl)")


@contextmanager
def open_split(data: Path, split: str, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    """The parquet file of a split; raises [`InputError`] where it is missing, torn, or without one of the columns."""
    read_manifest(data)
    path = Path(data) / f"{split}.parquet"
    if not path.is_file():
        raise InputError(f"--split {split}: {path} does not exist; splits are {', '.join(SPLITS)}")
    try:
        with pq.ParquetFile(path) as file:
            if missing := sorted({*columns} - {*file.schema_arrow.names}):
                raise InputError(f"{path}: has no column {', '.join(missing)}; convert again")
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: is no whole parquet file ({error}); convert again") from error


def read_records(data: Path, split: str) -> Iterator[Record]:
    """Every record of a split, in stored order."""
    with open_split(data, split, SCHEMA.names) as file:
        for batch in file.iter_batches(RECORDS_AT_ONCE, columns=SCHEMA.names):
            yield from to_records(batch)


def flatten_dialogues(records: pa.Table, columns: list[str]) -> pa.Table:
    """One row per dialogue: `id, subset, task, style, turns`, named columns of its record, and its number `record`.

    Vectorised: a million rows in seconds.
    """
    dialogues = records["dialogues"].combine_chunks()
    rows, record = pc.list_flatten(dialogues), pc.list_parent_indices(dialogues)
    flat = {name: pc.struct_field(rows, name) for name in _DIALOGUE.names}
    flat |= {name: records[name].combine_chunks().take(record) for name in columns}
    return pa.table({**flat, "record": record.cast(pa.int64())})


def read_dialogue_table(data: Path, split: str) -> pa.Table:
    """[`flatten_dialogues`] of a split with `images, width, height, shard, split`, and `boxes` where a text names one.

    `boxes` is null unless a text names one as `<box:i>`, and `shard` is -1 of images that lie in none.
    """
    columns = ["images", "width", "height", "boxes", "dialogues"]
    with open_split(data, split, columns) as file:
        shard = file.read(columns=["shard"])["shard"] if "shard" in file.schema_arrow.names else None
        table = file.read(columns=columns).cast(pa.schema([SCHEMA.field(name) for name in columns]))
    table = table.append_column(_SHARD, pa.repeat(-1, len(table)).cast(pa.int32()) if shard is None else shard)
    flat = flatten_dialogues(table, ["images", "width", "height", "shard"])
    turns = flat["turns"].combine_chunks()
    texts = pc.list_flatten(turns)
    names = [pc.match_substring(pc.struct_field(texts, name), "<box:") for name in _TURN.names]
    naming = pc.unique(pc.list_parent_indices(turns).filter(pc.or_(*names)))
    names_a_box = pc.is_in(pa.array(np.arange(len(flat))), naming.cast(pa.int64()))
    record = flat["record"].combine_chunks()
    boxes = table["boxes"].combine_chunks().take(pc.if_else(names_a_box, record, None))
    return flat.append_column("boxes", boxes).append_column("split", pa.repeat(split, len(flat)))


def image_root_of(data: Path, image_root: str | None) -> Path:
    """The image root given by the user, or else the one of the data folder's manifest; raises if it is no folder.

    Of a data folder in shards it is their index, see `shards`.
    """
    stated = read_manifest(data)["image_root"]
    if image_root is None and stated == SHARD_INDEX and (data / SHARD_INDEX).is_file():
        return (data / SHARD_INDEX).resolve()
    root = Path(image_root or stated)
    if not root.is_dir():
        raise InputError(f"image root {root} is no folder; give the right one with --image_root")
    return root


def check_fraction(fraction: float, option: str = "--val_fraction") -> None:
    """Raise [`InputError`] unless [`carve`] can take it."""
    if not 0 <= fraction < 1:
        raise InputError(f"{option} {fraction}: must be at least 0 and below 1")


def carve_val(records: pa.Table, fraction: float) -> pa.Table:
    """Move `fraction` of the training images to `val`, see [`carve`]."""
    splits, images = records["split"].to_pylist(), records["images"].to_pylist()
    carved = carve(splits, images, {"val": fraction})
    return records.set_column(records.schema.get_field_index("split"), "split", pa.array(carved, pa.string()))


def carve(splits: Sequence[str], images: Sequence[Sequence[str]], fractions: Mapping[str, float]) -> list[str]:
    """The splits, with `fraction` of the training images moved to each split named, one split after the other.

    Those with the smallest hash of their names are moved, whole images. The choice depends on the file names without
    suffix alone, so that it survives a change of texts, of row order and of the image root: the optical twins of radar
    images are carved alike.
    """
    carved = list(splits)
    train = [row for row, split in enumerate(splits) if split == "train"]
    key = {
        row: hashlib.sha256("\n".join(PurePath(image).stem for image in images[row]).encode()).digest()
        for row in train
    }
    train.sort(key=key.__getitem__)
    for split, fraction in fractions.items():
        check_fraction(fraction, f"--{split}_fraction")
        wanted = max(1, round(fraction * len(train))) if fraction > 0 and len(train) > 1 else 0
        for row in train[:wanted]:
            carved[row] = split
        train = train[wanted:]
    return carved


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
