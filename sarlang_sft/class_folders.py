"""Class folders, `<split>/<class>/<image>`, to records: how recognition sets such as MSTAR come in."""

import hashlib
import random
import re
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, header_size
from sarlang_sft.records import Dialogue, Record, Rejection, Turn, carve_val, to_table

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
CLASSIFICATION = "What is the category of the target in the image?"
DIALOGUES_PER_IMAGE = 4


def convert_folders(
    root: Path, source: str, val_fraction: float, caption_prompt: str, vqa_prompt: str, seed: int
) -> tuple[pa.Table, list[Rejection], dict[str, str]]:
    """Four dialogues per image, at any depth: its class, a yes and a no question, and a general caption.

    The class asked for by the no question is drawn by `seed` and the image's path. Folder names are the class names,
    as they are. `val` is carved from `train` where there is no folder for it.

    Args:
        root: Holds one folder per split (train, val, test, in any case), each with one folder per class.
        vqa_prompt: Holds `{question}`.

    Raises:
        InputError: There is no split folder, or fewer than two classes.

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
    if len(classes) < 2:
        raise InputError(f"--root {root}: needs at least two class folders in its splits, found {classes}")
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
            rejections += [Rejection(relative, row, relative, size) for row in range(1, DIALOGUES_PER_IMAGE + 1)]
            continue
        label = path.relative_to(split).parts[0]
        other = random.Random(f"{seed}/{relative}").choice([name for name in classes if name != label])
        asked = [
            ("classification", vqa_prompt.replace("{question}", CLASSIFICATION), f"{label}."),
            ("identification", vqa_prompt.replace("{question}", f"Is there a {label} in the image?"), "Yes."),
            ("identification", vqa_prompt.replace("{question}", f"Is there a {other} in the image?"), "No."),
            ("description", caption_prompt, f"A SAR image of a {label}."),
        ]
        dialogues = [
            Dialogue(f"{relative}:{row}", "folders", task, [Turn(question, answer)])
            for row, (task, question, answer) in enumerate(asked, 1)
        ]
        records.append(Record([relative], *size, source, splits[split], dialogues=dialogues))
    table = to_table(records)
    if "val" not in splits.values():
        table = carve_val(table, val_fraction)
    return table, rejections, {".": listing.hexdigest()}


def split_of(file: str) -> str | None:
    """The split that a file's name, or else its folders, state."""
    words = [word for word in re.split(r"[^a-z]+", file.lower()) if word in SPLIT_NAMES]
    return SPLIT_NAMES[words[-1]] if words else None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())
