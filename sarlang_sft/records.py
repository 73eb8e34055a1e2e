"""The data model: an image with everything said about it, and the data folder that holds many of them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarlang_sft.errors import InputError

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
        style: `concise` or `complex` for captions, else None.
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


@dataclass(frozen=True)
class Rejection:
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


def write_data_folder(
    out: Path, records: list[Record], rejections: list[Rejection], image_root: Path, inputs: dict[str, str]
) -> dict[str, Any]:
    """Write `train|val|test.parquet`, `manifest.json` and `rejected.jsonl`; the folder appears complete or not at all.

    Args:
        out: The folder; an earlier data folder of this name is replaced, anything else is refused.
        rejections: One for every dialogue that was read and is in no record.
        image_root: What the image paths are relative to.
        inputs: Hash of every input file by its path, for the manifest.

    Returns:
        The manifest.
    """
    if not records:
        why = ""
        for reason, _ in Counter(rejection.reason for rejection in rejections).most_common(1):
            example = next(rejection.image for rejection in rejections if rejection.reason == reason)
            why = f"; most often: {reason} (such as {example!r})"
        raise InputError(f"--out {out}: none of {len(rejections)} rows could be used{why}; nothing was written")
    if out.is_file():
        raise InputError(f"--out {out}: is a file; give the name of a folder")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise InputError(f"--out {out}: exists and is no data folder (no manifest.json); choose another")
    accepted = sum(len(record.dialogues) for record in records)
    counts: dict[str, dict[str, Counter]] = {split: {} for split in SPLITS}
    for record in records:
        for dialogue in record.dialogues:
            counts[record.split].setdefault(dialogue.subset, Counter())[dialogue.task] += 1
    manifest = {
        "read": accepted + len(rejections),
        "accepted": accepted,
        "rejected": dict(Counter(rejection.reason for rejection in rejections)),
        "counts": counts,
        "image_root": str(image_root.resolve()),
        "inputs": inputs,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    building.chmod(0o755)
    try:
        for split in SPLITS:
            rows = [asdict(record) for record in records if record.split == split]
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), building / f"{split}.parquet")
        (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        with open(building / "rejected.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(rejection)) + "\n" for rejection in rejections)
        _replace_folder(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _replace_folder(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.rename(target, old / "folder")
    os.rename(new, target)
    shutil.rmtree(old)


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest of a data folder; raises [`InputError`] if `data` is none."""
    path = Path(data) / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"--data {data}: no data folder (manifest.json is missing); make one with data_prep/convert_*.py"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--data {data}: {path} is no valid JSON ({error}); convert the data again") from error


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


def _split_file(data: Path, split: str) -> Path:
    read_manifest(data)
    path = Path(data) / f"{split}.parquet"
    if not path.is_file():
        raise InputError(f"--split {split}: {path} does not exist; splits are {', '.join(SPLITS)}")
    return path


def read_records(data: Path, split: str) -> Iterator[Record]:
    """Every record of a split, in stored order."""
    file = pq.ParquetFile(_split_file(data, split))
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            row["boxes"] = [Box(**box) for box in row["boxes"]]
            row["dialogues"] = [
                Dialogue(**{**dialogue, "turns": [Turn(**turn) for turn in dialogue["turns"]]})
                for dialogue in row["dialogues"]
            ]
            yield Record(**row)


def read_dialogue_table(data: Path, split: str) -> pa.Table:
    """One row per dialogue: `id, subset, task, style, turns`, and of its record `images, width, height, split, boxes`.

    The column `record` numbers the record it belongs to, in stored order; `boxes` is null unless a text names one as
    `<box:i>`. Vectorised: a million rows in seconds.
    """
    table = pq.read_table(_split_file(data, split), columns=["images", "width", "height", "boxes", "dialogues"])
    dialogues = table["dialogues"].combine_chunks()
    rows, record = pc.list_flatten(dialogues), pc.list_parent_indices(dialogues)
    columns = {name: pc.struct_field(rows, name) for name in _DIALOGUE.names}
    columns |= {name: table[name].combine_chunks().take(record) for name in ("images", "width", "height")}
    turns = pc.list_flatten(columns["turns"])
    texts = [pc.match_substring(pc.struct_field(turns, name), "<box:") for name in ("question", "answer")]
    naming = pc.unique(pc.list_parent_indices(columns["turns"]).filter(pc.or_(*texts)))
    names_a_box = pc.is_in(pa.array(np.arange(len(rows))), naming.cast(pa.int64()))
    columns["boxes"] = table["boxes"].combine_chunks().take(pc.if_else(names_a_box, record, None))
    return pa.table({**columns, "split": pa.repeat(split, len(rows)), "record": record.cast(pa.int64())})


def image_root_of(data: Path, image_root: str | None) -> Path:
    """The image root given by the user, or else the one of the data folder's manifest; raises if it is no folder."""
    root = Path(image_root or read_manifest(data)["image_root"])
    if not root.is_dir():
        raise InputError(f"image root {root} is no folder; give the right one with --image_root")
    return root


def carve_val(records: list[Record], fraction: float) -> list[Record]:
    """Move `fraction` of the training images to `val`: those with the smallest hash of their names, whole images.

    The choice depends on the file names without suffix alone, so that it survives a change of texts, of row order and
    of the image root: the optical twins of radar images are carved alike.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"--val_fraction {fraction}: must be at least 0 and below 1")
    train = [record for record in records if record.split == "train"]
    wanted = max(1, round(fraction * len(train))) if fraction > 0 and len(train) > 1 else 0
    key = {
        id(record): hashlib.sha256("\n".join(Path(image).stem for image in record.images).encode()).digest()
        for record in train
    }
    val = {id(record) for record in sorted(train, key=lambda record: key[id(record)])[:wanted]}
    return [Record(**{**vars(record), "split": "val"}) if id(record) in val else record for record in records]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
