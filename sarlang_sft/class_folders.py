"""Class folders, `<split>/<class>/<image>`, to records: how recognition sets such as MSTAR come in."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, header_size
from sarlang_sft.language.balance import balance
from sarlang_sft.language.captions import chip_captions
from sarlang_sft.language.dialogues import Said, YesNo
from sarlang_sft.language.things import Thing, name_things
from sarlang_sft.language.wording import Wording
from sarlang_sft.records import Dialogue, Record, Rejection, Turn, carve, to_table
from sarlang_sft.splits import SPLIT_NAMES

FOLDERS = "folders"  # subset


class _Chip(NamedTuple):
    """An image of one object."""

    image: str
    width: int
    height: int
    split: str
    thing: Thing


def convert_folders(
    root: Path, source: str, val_fraction: float, wording: Wording, captions: int, seed: int
) -> tuple[pa.Table, list[Rejection], dict[str, str]]:
    """Dialogues of every image, at any depth: its class, yes and no questions, and captions.

    In every split each class is asked for in as many images that show it as in images that do not. Folder names are
    the class names. Captions say the class, and what it is a kind of where the wording knows; an image is taken to
    show one object. `val` is carved from `train` where there is no folder for it.

    Args:
        root: Holds one folder per split (train, val, test, in any case), each with one folder per class.
        captions: Of an image, as far as the wording has so many.

    Raises:
        InputError: There is no split folder, fewer than two classes, or texts could not tell two of them apart.

    Returns:
        Records as a table, the rejections of every file that is in none of them (one for each dialogue that an image
        gets on average), and one hash of all file names and sizes.
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
    chips: list[_Chip] = []
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
            rejections += [Rejection(relative, row, relative, size) for row in range(1, 4 + captions)]
        else:
            chips.append(_Chip(relative, *size, splits[split], things[path.relative_to(split).parts[0]]))
    fractions = {} if "val" in splits.values() else {"val": val_fraction}
    carved = carve([chip.split for chip in chips], [[chip.image] for chip in chips], fractions)
    chips = [chip._replace(split=split) for chip, split in zip(chips, carved, strict=True)]
    records = []
    for chip, checks in zip(chips, _choose_checks(chips, np.random.default_rng(seed)), strict=True):
        said = _say(chip.thing, checks, captions, wording, random.Random(f"{seed}/{chip.image}"))
        dialogues = [
            Dialogue(f"{chip.image}:{row}", one.subset, one.task, list(one.turns), one.style)
            for row, one in enumerate(said, 1)
        ]
        records.append(Record([chip.image], chip.width, chip.height, source, chip.split, dialogues=dialogues))
    return to_table(records), rejections, {".": listing.hexdigest()}


def _choose_checks(chips: Sequence[_Chip], rng: np.random.Generator) -> list[list[YesNo]]:
    """The classes that each image is asked for: in every split as often with yes as with no."""
    different = list(dict.fromkeys(chip.thing for chip in chips))
    there = np.array([[chip.thing == thing for thing in different] for chip in chips], bool).reshape(
        len(chips), len(different)
    )
    return balance(different, there, ~there, np.ones_like(there), [chip.split for chip in chips], rng)


def _say(thing: Thing, checks: Sequence[YesNo], captions: int, wording: Wording, rng: random.Random) -> Iterator[Said]:
    """All that is said of an image of one object."""
    question = wording.ask(rng.choice(wording.sets["chips.category"]).fill({}))
    answer = wording.parts["answers.class"].fill(thing.forms())
    yield Said(FOLDERS, "classification", None, (Turn(question, answer),))
    for asked, yes in checks:
        question = wording.ask(rng.choice(wording.sets["questions.identification"]).fill(asked.forms()))
        answer = wording.parts["answers.yes" if yes else "answers.no"].fill({})
        yield Said(FOLDERS, "identification", None, (Turn(question, answer),))
    yield from chip_captions(thing, captions, FOLDERS, wording, rng)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())
