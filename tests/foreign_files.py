"""Records to export, and files as others write them."""

import json
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings

from sarlang_sft.formats.exporting import export
from sarlang_sft.formats.importing import import_folder, import_rows
from sarlang_sft.records import (
    SPLITS,
    Box,
    Dialogue,
    Record,
    Rejection,
    Turn,
    read_records,
    to_records,
    to_table,
    write_data_folder,
)

SIZE = (64, 48)

IMAGES = ["a/1.png", "a/2.JPG", "b/1.png", "b c/ü.tif", "0000001.bmp"]

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def imported(*words: object) -> tuple[list[Record], list[Rejection], dict[str, str], Counter]:
    """[`import_rows`] with its records as objects."""
    table, *others = import_rows(*words)
    return list(to_records(table)), *others


def stored(data: Path) -> list[Record]:
    return sorted((record for split in SPLITS for record in read_records(data, split)), key=repr)


def there(name: str, records: list[Record], root: Path, folder: Path, image_paths: str | None = None) -> dict:
    write_data_folder(folder / "data", to_table(records), [], root, {})
    return export(folder / "data", name, folder / "out", root, list(SPLITS), image_paths, 2)


def back(name: str, source: Path, root: Path | None, folder: Path) -> tuple[list[Record], dict, Counter]:
    manifest, left_out = import_folder(source, name, folder / "back", root, "train", 0.5)
    return stored(folder / "back"), manifest, left_out


def two_turns() -> Record:
    boxes = [Box("ship", [10.4, 20, 30, 10.6]), Box("car", [20, 5, 40, 8, 38, 30, 18, 27])]
    dialogues = [
        Dialogue("x:1", "boxes", "grounding", [Turn("Where is the ship?", "<box:0>")]),
        Dialogue("x:2", "boxes", "counting", [Turn("How many ships?", "1"), Turn("And at <box:1>?", "A car.")]),
    ]
    return Record(["a/1.png"], *SIZE, "made", "train", boxes=boxes, dialogues=dialogues)


def theirs(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def said(*texts: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[place % len(roles)], "content": text} for place, text in enumerate(texts)]


def spoken(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
