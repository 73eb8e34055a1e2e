"""Class folders, `<split>/<class>/<image>`, to records: how recognition sets such as MSTAR come in."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, header_size
from sarlang_sft.language.captions import chip_captions
from sarlang_sft.language.dialogues import Said
from sarlang_sft.language.things import Thing, name_things
from sarlang_sft.language.wording import Wording
from sarlang_sft.records import Dialogue, Record, Rejection, Turn, carve_val, to_table
from sarlang_sft.splits import SPLIT_NAMES

FOLDERS = "folders"  # subset


def convert_folders(
    root: Path, source: str, val_fraction: float, wording: Wording, captions: int, seed: int
) -> tuple[pa.Table, list[Rejection], dict[str, str]]:
    """Dialogues of every image, at any depth: its class, a yes and a no question, and captions.

    The class asked for by the no question, and the forms, are drawn by `seed` and the image's path. Folder names are
    the class names. Captions say the class, and what it is a kind of where the wording knows; an image is taken to
    show one object. `val` is carved from `train` where there is no folder for it.

    Args:
        root: Holds one folder per split (train, val, test, in any case), each with one folder per class.
        captions: Of an image, as far as the wording has so many.

    Raises:
        InputError: There is no split folder, fewer than two classes, or texts could not tell two of them apart.

    Returns:
        Records as a table, the rejections of every file that is in none of them, and one hash of all file names and
        sizes.
    """
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    splits = {path: SPLIT_NAMES[path.name.lower()] for path in _folders(root) if path.name.lower() in SPLIT_NAMES}
    if not splits:
        raise InputError(f"--root {root}: no folder named train, val or test in it")
    classes = sorted({path.name for split in splits for path in _folders(split)})
    things = name_things(classes, wording)
    if len({*things.values()}) < 2:
        raise InputError(f"--root {root}: needs at least two class folders in its splits, found {classes}")
    most = len(list(_say(things[classes[0]], things, captions, wording, random.Random(seed))))
    records: list[Record] = []
    rejections: list[Rejection] = []
    files = [(split, path) for split in splits for path in sorted(split.rglob("*")) if not path.is_dir()]
    listing = hashlib.sha256()
    for split, path in tqdm(files, desc=root.name, unit=" images"):
        relative = path.relative_to(root).as_posix()
        listing.update(f"{relative} {path.lstat().st_size}\n".encode())
        if path.parent == split:
            size = "not in a class folder"
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            size = "not an image file"
        else:
            size = header_size(root, relative)
        if isinstance(size, str):
            rejections += [Rejection(relative, row, relative, size) for row in range(1, most + 1)]
            continue
        label = path.relative_to(split).parts[0]
        said = _say(things[label], things, captions, wording, random.Random(f"{seed}/{relative}"))
        dialogues = [
            Dialogue(f"{relative}:{row}", one.subset, one.task, list(one.turns), one.style)
            for row, one in enumerate(said, 1)
        ]
        records.append(Record([relative], *size, source, splits[split], dialogues=dialogues))
    table = to_table(records)
    if "val" not in splits.values():
        table = carve_val(table, val_fraction)
    return table, rejections, {".": listing.hexdigest()}


def _say(
    thing: Thing, things: Mapping[str, Thing], captions: int, wording: Wording, rng: random.Random
) -> Iterator[Said]:
    """All that is said of an image of one object."""
    other = rng.choice([one for one in dict.fromkeys(things.values()) if one is not thing])
    answers = wording.parts
    asked = [
        ("classification", "chips.category", thing, answers["answers.class"].fill(thing.forms())),
        ("identification", "questions.identification", thing, answers["answers.yes"].fill({})),
        ("identification", "questions.identification", other, answers["answers.no"].fill({})),
    ]
    for task, form, meant, answer in asked:
        question = wording.ask(rng.choice(wording.sets[form]).fill(meant.forms()))
        yield Said(FOLDERS, task, None, (Turn(question, answer),))
    yield from chip_captions(thing, captions, FOLDERS, wording, rng)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())
