"""Data folders to the formats of neighbours."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.formats.files import ROWS_AT_ONCE
from sarlang_sft.formats.rows import Sample
from sarlang_sft.formats.table import FORMATS, Format
from sarlang_sft.image_files import path_inside
from sarlang_sft.records import SCHEMA, Record, check_not_in_shards, open_split, read_records
from sarlang_sft.whole_output import Own, whole_folder

MANIFEST = "export.json"
EXPORT = Own(
    MANIFEST,
    r"export\.json|dataset_info\.json|.+_(train|val|test)\.tsv|(train|val|test)(_text)?\.(jsonl?|parquet)|(train|val|test)-\d{6,}\.tar",
)


def export(
    data: Path, name: str, out: Path, image_root: Path, splits: list[str], image_paths: str | None, shard_size: int
) -> dict[str, Any]:
    """Write splits of a data folder in a format of `FORMATS`, batch by batch; `out` appears complete or not at all.

    Args:
        out: An earlier export is replaced, anything else is refused.
        image_paths: `absolute`, or `relative` to `image_root`; None: as the format's users are used to.
        shard_size: Records per WebDataset shard.

    Raises:
        InputError: Nothing of the splits can be written.

    Returns:
        What `export.json` holds: `written` (dialogues by split), `left_out` (dialogues by reason) and `changed`
        (dialogues by what the neighbour sees otherwise).
    """
    if shard_size < 1:
        raise InputError(f"--shard_size {shard_size}: must be at least 1")
    check_not_in_shards(data)
    target = FORMATS[name]
    absolute = (image_paths or target.image_paths) == "absolute"
    counts = {"written": Counter(), "left_out": Counter(), "changed": Counter()}
    with whole_folder(out, EXPORT) as building:
        for split in dict.fromkeys(splits):
            with open_split(data, split, SCHEMA.names) as file:
                total, boxed = file.metadata.num_rows, _names_a_box(file)
            if not total:
                continue
            records = tqdm(read_records(data, split), total=total, desc=split, unit=" records")
            samples = _samples(records, target, image_root.resolve(), absolute, boxed, counts)
            target.write(building, split, samples, image_root, shard_size)
        if not counts["written"]:
            reasons = ", ".join(counts["left_out"]) or "the splits are empty"
            raise InputError(f"--data {data}: nothing of {', '.join(splits)} could be written: {reasons}")
        if target.finish:
            target.finish(building, out.name)
        summary = {"format": name, "image_root": str(image_root.resolve()), **counts}
        (building / MANIFEST).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def print_export(summary: dict[str, Any]) -> None:
    """What was written, and what was not, or is not as it was."""
    for split, count in summary["written"].items():
        print(f"  {split:5} {count:>9,} dialogues")
    for heading, key in (("left out", "left_out"), ("changed for the reader", "changed")):
        for reason, count in summary[key].items():
            print(f"  {heading}: {reason} {count:,}")


def _samples(
    records: Iterator[Record], target: Format, image_root: Path, absolute: bool, split_names_a_box: bool,
    counts: dict[str, Counter],
) -> Iterator[Sample]:  # fmt: skip
    for record in records:
        if not record.dialogues:
            counts["left_out"]["record without dialogues"] += 1
            continue
        if not all(_is_image(image_root, image) for image in record.images):
            counts["left_out"]["image not found"] += len(record.dialogues)
            continue
        kept, texts = [], []
        for dialogue in record.dialogues:
            if reason := next((why for why, holds in target.cannot_hold.items() if holds(record, dialogue)), None):
                counts["left_out"][reason] += 1
                continue
            try:
                texts.append(target.words.write_turns(dialogue.turns, record))
            except ValueError as error:
                counts["left_out"][str(error)] += 1
                continue
            kept.append(dialogue)
            counts["changed"].update(note for note, holds in target.notes.items() if holds(record, dialogue))
        if kept:
            counts["written"][record.split] += len(kept)
            images = [str(image_root / image) if absolute else image for image in record.images]
            yield Sample(replace(record, dialogues=kept), images, texts, split_names_a_box)


def _is_image(image_root: Path, image: str) -> bool:
    try:
        return os.path.isfile(path_inside(image_root, image))
    except InputError:
        return False


def _names_a_box(file: pq.ParquetFile) -> bool:
    """Whether any text of the split names one as `<box:i>`."""
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=["dialogues"]):
        turns = pc.list_flatten(pc.struct_field(pc.list_flatten(batch["dialogues"]), "turns"))
        for name in ("question", "answer"):
            if pc.any(pc.match_substring(pc.struct_field(turns, name), "<box:")).as_py():
                return True
    return False
