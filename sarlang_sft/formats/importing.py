"""Files in the formats of neighbours, by us or by others, to records."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.errors import InputError
from sarlang_sft.formats.exporting import MANIFEST
from sarlang_sft.formats.rows import BadRow, Row, read_own
from sarlang_sft.formats.table import IMPORTABLE, Format
from sarlang_sft.image_lookup import ImageFolder, NoImageError
from sarlang_sft.records import (
    DATA_FOLDER,
    Box,
    Dialogue,
    Record,
    Rejection,
    Turn,
    carve_val,
    check_fraction,
    file_hash,
    to_table,
    write_data_folder,
)
from sarlang_sft.sarlang import RESOLUTION_M, SPECIAL_TOKEN, source_of, style_of, task_of
from sarlang_sft.splits import split_of
from sarlang_sft.whole_output import check_replaceable, whole_folder

NOT_ROWS = ("dataset_info.json", MANIFEST)
DESCRIPTION = re.compile(r"^\W*(please\s+)?(describe|caption)\b|\b(caption|description) (of|for)\b", re.IGNORECASE)
_SHOWN = 200  # characters of an image's name in a rejection; some files hold whole images there


def import_folder(
    source: Path, name: str, out: Path, image_root: Path | None, split: str, val_fraction: float
) -> tuple[dict[str, Any], Counter]:
    """Files of a format of `IMPORTABLE` to a data folder; see [`import_rows`].

    Args:
        image_root: Default: the folder of `source`; for files that bring their images, which are written there, the
            new folder `<out>_images`.

    Returns:
        The manifest of the data folder, and rows by what of them a record cannot hold.
    """
    check_replaceable(out, DATA_FOLDER)
    check_fraction(val_fraction)
    if IMPORTABLE[name].brings_images:
        image_root = image_root or out.parent / f"{out.name}_images"
        inner, outer = out.resolve(), image_root.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise InputError(f"--image_root {image_root}: must lie beside --out {out}, not in it or around it")
        with whole_folder(image_root, option="--image_root") as building:
            records, rejections, inputs, left_out = import_rows(source, name, building, split, val_fraction)
            return write_data_folder(out, records, rejections, image_root, inputs), left_out
    image_root = image_root or (source if source.is_dir() else source.parent)
    records, rejections, inputs, left_out = import_rows(source, name, image_root, split, val_fraction)
    return write_data_folder(out, records, rejections, image_root, inputs), left_out


def print_left_out(left_out: Counter) -> None:
    """What of the rows no record can hold."""
    for what, count in left_out.items():
        print(f"  lost of {count:,} rows: {what}")


def import_rows(
    source: Path, name: str, image_root: Path, split: str, val_fraction: float
) -> tuple[pa.Table, list[Rejection], dict[str, str], Counter]:
    """Read files of a format of `IMPORTABLE` into records, one per image with all its dialogues.

    A row of our own export becomes what it was; if its text was edited since, or it was moved to the file of another
    split, that counts. Of a row by others the task is guessed from the question, the image size read from the header,
    and the split taken from the file's name if that holds one, else from `split`; unless a split is stated as `val`, a
    part of `train` becomes it.

    Args:
        source: A file, or a folder with any number of them.
        image_root: Holds the images at any depth; WebDataset shards write theirs into it.

    Raises:
        InputError: There is no file, or one cannot be read as a whole.

    Returns:
        Records as a table, one rejection for every row that is in none of them, the hash of every file, and rows by
        what of them a record cannot hold.
    """
    origin = IMPORTABLE[name]
    files = _find_files(source, origin.suffixes)
    images = ImageFolder(image_root)
    records: dict[str, Record] = {}
    taken: set[str] = set()
    rejections: list[Rejection] = []
    left_out: Counter = Counter()
    stated = False
    for file, path in files.items():
        of_file = split_of(file)
        stated |= of_file == "val"
        for row in tqdm(origin.read(path, image_root), desc=file, unit=" rows"):
            try:
                if row.problem:
                    raise BadRow(row.problem)
                if row.own is not None:
                    record, dialogue = _own_record(row, images, of_file)
                    key = repr((record, row.own.get("record")))
                else:
                    record, dialogue = _other_record(row, images, of_file or split, f"{file}:{row.number}", name)
                    key = f"{record.split} {record.images or dialogue.id}"
                record = records.get(key, record)
                boxes = list(record.boxes)
                dialogue = replace(dialogue, turns=_turns(row, dialogue.turns, record, boxes, origin))
                _check(dialogue, boxes, taken)
            except (BadRow, NoImageError) as error:
                image = ", ".join(row.images)[:_SHOWN]
                rejections.append(Rejection(file, row.number, image, str(error)))
                continue
            stated |= row.own is not None
            taken.add(dialogue.id)
            record.boxes[:] = boxes
            record.dialogues.append(dialogue)
            records[key] = record
            left_out.update(row.left_out)
    kept = to_table(records.values())
    hashes = {file: file_hash(path) for file, path in files.items()}
    return kept if stated else carve_val(kept, val_fraction), rejections, hashes, left_out


def _find_files(source: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise InputError(f"--source {source}: no such file or folder")
    files = {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in suffixes and path.is_file() and path.name not in NOT_ROWS
    }
    if not files:
        raise InputError(f"--source {source}: no {' or '.join(suffixes)} file below it")
    return files


def _own_record(row: Row, images: ImageFolder, split: str | None) -> tuple[Record, Dialogue]:
    """As it was exported; in the split that its file states now, if it does."""
    record, dialogue = read_own(row.own)
    record = replace(record, split=split or record.split)
    named = [name.replace("\\", "/") for name in row.images]
    if len(named) != len(record.images) or not all(map(str.endswith, named, record.images)):
        raise BadRow("images differ from those in the extra keys")
    return replace(record, images=[images.locate(name) for name in record.images]), dialogue


def _other_record(row: Row, images: ImageFolder, split: str, identifier: str, subset: str) -> tuple[Record, Dialogue]:
    """Without boxes and turns."""
    relative = [images.locate(name) for name in row.images]
    sizes = [images.size(name) for name in relative]
    question, answer = row.turns[0].question, row.turns[0].answer
    if not all(turn.question for turn in row.turns):
        raise BadRow("empty question")
    if not all(turn.answer for turn in row.turns):
        raise BadRow("empty answer")
    task = row.task or ("description" if DESCRIPTION.search(question) else task_of(question))
    style = style_of(answer) if task == "description" else None
    source = source_of(Path(relative[0]).stem) if relative else "unknown"
    width, height = sizes[0] if sizes else (0, 0)
    record = Record(relative, width, height, source, split, resolution_m=RESOLUTION_M.get(source))
    return record, Dialogue(identifier, subset, task, [], style)


def _turns(row: Row, own: list[Turn], record: Record, boxes: list[Box], origin: Format) -> list[Turn]:
    """The texts of a row with `<box:i>`; boxes that they name and the record lacks are appended.

    Args:
        own: What the texts were when we wrote them, if they named boxes.
    """
    if own and _still_says(own, row, record, origin):
        return own
    if row.own is not None and not own:
        return row.turns
    return origin.words.read(row, boxes, (record.width, record.height))


def _still_says(turns: list[Turn], row: Row, record: Record, origin: Format) -> bool:
    """Whether the texts of a row are what the turns are in the words of its format: nobody edited them."""
    try:
        return origin.words.write_turns(turns, record) == row.turns
    except ValueError:
        return False


def _check(dialogue: Dialogue, boxes: list[Box], taken: set[str]) -> None:
    texts = [text for turn in dialogue.turns for text in (turn.question, turn.answer)]
    try:
        "".join([dialogue.id, *texts, *(box.label for box in boxes)]).encode()
    except UnicodeEncodeError as error:
        raise BadRow("not valid Unicode") from error
    if any(SPECIAL_TOKEN.search(text) for text in texts):
        raise BadRow("special token in the text")
    if any(int(number) >= len(boxes) for text in texts for number in PLACEHOLDER.findall(text)):
        raise BadRow("no box of this number")
    if dialogue.id in taken:
        raise BadRow("id used twice")
