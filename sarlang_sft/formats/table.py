"""The formats by name: how each puts boxes in words, writes its files and reads them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sarlang_sft.formats import llamafactory, llava, sarchat, swift, trl, vlmevalkit
from sarlang_sft.formats.files import BrokenRow, read_items, write_lines, write_list, write_parquet
from sarlang_sft.formats.rows import Row, Sample, read_row
from sarlang_sft.formats.webdataset import read_shards, write_shards
from sarlang_sft.formats.words import Words, named_boxes, read_verbatim, verbatim
from sarlang_sft.records import Dialogue, Record, Turn

MakeRow = Callable[[Sample, Dialogue, list[Turn]], dict[str, Any]]
WriteRows = Callable[[Path, str, Iterable[dict[str, Any]]], None]


@dataclass(frozen=True)
class Format:
    """One neighbour.

    Attributes:
        suffixes: Of the files that it may be imported from.
        words: How it speaks of boxes.
        write: Writes the samples of a split into a folder; takes the image root and the records per shard as well.
        read: The rows of a file; takes the image root, which only WebDataset writes to. None: it is only written.
        image_paths: `absolute`, or `relative` to the image root: what its users are used to.
        brings_images: Its files hold the images themselves.
        cannot_hold: What is left out, and of which dialogues that holds.
        notes: What its reader sees otherwise than we do, and of which dialogues that holds.
        finish: Completes the folder of an export of this name.
    """

    suffixes: tuple[str, ...]
    words: Words
    write: Callable[[Path, str, Iterable[Sample], Path, int], None]
    read: Callable[[Path, Path], Iterator[Row]] | None
    image_paths: str = "absolute"
    brings_images: bool = False
    cannot_hold: dict[str, Callable[[Record, Dialogue], bool]] = field(default_factory=dict)
    notes: dict[str, Callable[[Record, Dialogue], bool]] = field(default_factory=dict)
    finish: Callable[[Path, str], None] | None = None


def _write_rows(
    folder: Path, split: str, samples: Iterable[Sample], image_root: Path, shard_size: int,
    make_row: MakeRow, write: WriteRows,
) -> None:  # fmt: skip
    rows = (
        make_row(sample, dialogue, turns)
        for sample in samples
        for dialogue, turns in zip(sample.record.dialogues, sample.texts, strict=True)
    )
    write(folder, split, rows)


def _read_rows(
    path: Path, image_root: Path, separator: str, needs_tags: bool = True,
    add: Callable[[Row, dict[str, Any]], Row] | None = None,
) -> Iterator[Row]:  # fmt: skip
    for number, item in enumerate(read_items(path), 1):
        if isinstance(item, BrokenRow):
            yield Row(number, problem="broken JSON")
            continue
        row = read_row(item, number, separator, needs_tags)
        yield add(row, item) if add and not row.problem else row


def _texts(dialogue: Dialogue) -> str:
    return "".join(turn.question + turn.answer for turn in dialogue.turns)


_ROTATED = {
    "rotated box written as the upright one around it": lambda record, dialogue: any(
        len(box.points) == 8 for box in named_boxes(_texts(dialogue), record)
    )
}
_ROUNDED = {
    "box rounded to whole pixels": lambda record, dialogue: any(
        value != round(value) for box in named_boxes(_texts(dialogue), record) for value in box.points
    )
}
_ONE_IMAGE = {
    "several images (LLaVA-1.5's own loader reads one)": lambda record, dialogue: len(record.images) > 1,
}
_LAST_ANSWER = {"only the last answer is trained on": lambda record, dialogue: len(dialogue.turns) > 1}
_JSON = (".json", ".jsonl")
FORMATS = {
    "llamafactory": Format(
        suffixes=_JSON,
        words=llamafactory.WORDS,
        write=partial(_write_rows, make_row=llamafactory.row, write=write_lines),
        read=partial(_read_rows, separator=llamafactory.SEPARATOR),
        notes=_ROUNDED,
        finish=llamafactory.write_dataset_info,
    ),
    "swift": Format(
        suffixes=_JSON,
        words=swift.WORDS,
        write=partial(_write_rows, make_row=swift.row, write=write_lines),
        read=partial(_read_rows, separator=swift.SEPARATOR, add=swift.add_objects),
        notes=_ROTATED,
    ),
    "llava": Format(
        suffixes=_JSON,
        words=llava.WORDS,
        write=partial(_write_rows, make_row=llava.row, write=write_list),
        read=partial(_read_rows, separator=llava.SEPARATOR),
        image_paths="relative",
        notes=_ROUNDED | _ONE_IMAGE,
    ),
    "trl": Format(
        suffixes=(".parquet", *_JSON),
        words=trl.WORDS,
        write=partial(_write_rows, make_row=trl.row, write=partial(write_parquet, schema=trl.SCHEMA)),
        read=partial(_read_rows, separator="", needs_tags=False),
        notes=_ROUNDED,
    ),
    "trl_completion": Format(
        suffixes=(".parquet", *_JSON),
        words=trl.WORDS,
        write=partial(
            _write_rows, make_row=trl.completion_row, write=partial(write_parquet, schema=trl.COMPLETION_SCHEMA)
        ),
        read=partial(_read_rows, separator="", needs_tags=False),
        notes=_ROUNDED | _LAST_ANSWER,
    ),
    "sarchat": Format(
        suffixes=_JSON,
        words=sarchat.WORDS,
        write=partial(_write_rows, make_row=sarchat.row, write=write_list),
        read=partial(_read_rows, separator=sarchat.SEPARATOR, add=sarchat.take_tag),
        notes=_ROTATED | _ROUNDED,
    ),
    "webdataset": Format(
        suffixes=(".tar",),
        words=Words(verbatim, read_verbatim, reserved=()),
        write=write_shards,
        read=read_shards,
        image_paths="relative",
        brings_images=True,
    ),
    "vlmevalkit": Format(
        suffixes=(".tsv",),
        words=vlmevalkit.WORDS,
        write=partial(_write_rows, make_row=vlmevalkit.row, write=vlmevalkit.write_table),
        read=None,
        cannot_hold=vlmevalkit.CANNOT_HOLD,
        notes=_ROUNDED,
        finish=vlmevalkit.name_tables,
    ),
}
IMPORTABLE = {name: form for name, form in FORMATS.items() if form.read}
