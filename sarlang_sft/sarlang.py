"""The published SARLANG-1M release (arXiv 2504.03254): reading its folder, and writing one in the same layout."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, header_size
from sarlang_sft.records import Dialogue, Record, Rejection, Turn, carve_val, file_hash

CAPTION_PROMPT = "Describe the content of this image in one sentence."
VQA_PROMPT = "Question: {question}. Answer the question concisely."
CLASS_PREFIX = "The classes are: tank, car, aircraft, harbor, bridge, ship."
POSITION_PREFIX = "The classes are: top, center, bottom, left, right."


@dataclass(frozen=True)
class TextFile:
    """One text file of the release; a caption file without a style mixes both."""

    split: str
    kind: str
    style: str | None = None


# By file stem, lower case without - and _ : the README and the unpacked archive spell them differently.
TEXT_FILES = {
    "captiontrain": TextFile("train", "caption"),
    "captiontraining": TextFile("train", "caption"),
    "captiontest": TextFile("test", "caption", "complex"),
    "captiontest1": TextFile("test", "caption", "concise"),
    "sarvqa1train": TextFile("train", "vqa1"),
    "sarvqa2train": TextFile("train", "vqa2"),
    "sarvqa1test": TextFile("test", "vqa1"),
    "sarvqa2test": TextFile("test", "vqa2"),
}

# The first pattern found in the question decides; anything else is one of the paper's Others.
TASK_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), task)
    for pattern, task in [
        (r"\bin the (area|region) \[", "referring"),
        (r"^\s*(how many|count)\b|\bnumber of\b", "counting"),
        (r"^\s*(is|are|does|do|has|have|can)\b", "identification"),
        (r"^\s*where\b|\bpositioned\b", "positioning"),
        (
            r"^\s*(what|which) (type|kind) of area\b|\bcategor(y|ies)\b|^\s*(what|which) (class|object)",
            "classification",
        ),
    ]
]

SOURCE_PATTERNS = [
    (re.compile(r"^SIM_"), "simulator"),
    (re.compile(r"^SN6_", re.IGNORECASE), "SpaceNet6"),
    (re.compile(r"^GF\d_", re.IGNORECASE), "DFC2023"),
    (re.compile(r"^\d+$"), "SARDet-100K"),
    (re.compile(r"^(SV|[A-Za-z]+)_", re.IGNORECASE), "OpenEarthMap-SAR"),
]

RESOLUTION_M = {"SpaceNet6": 0.5}  # the other sources mix resolutions
SPECIAL_TOKEN = re.compile(r"<\|\w+\|>|<image>")


def task_of(question: str) -> str:
    """The application of a VQA question, recognised from its words."""
    return next((task for pattern, task in TASK_PATTERNS if pattern.search(question)), "others")


def source_of(stem: str) -> str:
    """The data set that an image comes from, by its name."""
    return next((source for pattern, source in SOURCE_PATTERNS if pattern.search(stem)), "unknown")


def style_of(caption: str) -> str:
    """`complex` for captions of several sentences or more than 20 words, else `concise`.

    The training file mixes both styles unmarked; the published concise captions are one short sentence.
    """
    sentences = re.findall(r"[.!?](?:\s|$)", caption.strip())
    return "complex" if len(sentences) > 1 or len(caption.split()) > 20 else "concise"


@dataclass(frozen=True)
class Row:
    """One line of a text file; `question` is None in caption files, `problem` says why a line cannot be used."""

    number: int
    image: str = ""
    question: str | None = None
    answer: str = ""
    problem: str | None = None


def find_text_files(root: Path) -> dict[TextFile, Path]:
    """The release's text files below `root`, at any depth and in any case, by what they hold.

    Where a JSON and a CSV hold the same, the JSON is taken.

    Raises:
        InputError: There is none, or two of one suffix hold the same.
    """
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    found: dict[tuple[TextFile, str], Path] = {}
    for path in sorted(root.rglob("*")):
        file = TEXT_FILES.get(re.sub(r"[-_ ]", "", path.stem.lower()))
        suffix = path.suffix.lower()
        if file is None or suffix not in (".json", ".csv") or not path.is_file():
            continue
        if (file, suffix) in found:
            raise InputError(
                f"--root {root}: {found[file, suffix]} and {path} hold the same texts; remove one of them"
            )
        found[file, suffix] = path
    if not found:
        raise InputError(
            f"--root {root}: no text file of the release below it (such as Text/VQA/train/SARVQA1_train.json)"
        )
    return {
        file: found.get((file, ".json"), found.get((file, ".csv")))
        for file in dict.fromkeys(TEXT_FILES.values())
        if (file, ".json") in found or (file, ".csv") in found
    }


def read_rows(path: Path, kind: str) -> Iterator[Row]:
    """The lines of one text file, numbered from 1 (header not counted); unusable ones carry a `problem`."""
    return _read_json(path, kind) if path.suffix.lower() == ".json" else _read_csv(path, kind)


def _read_csv(path: Path, kind: str) -> Iterator[Row]:
    columns = 2 if kind == "caption" else 3
    csv.field_size_limit(sys.maxsize)  # an unbalanced quote makes one field of all that follows; it is counted below
    number = lines = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for cells in reader:
                lines, spanned = reader.line_num, reader.line_num - lines
                if not cells or (number == 0 and cells[0].strip().lower() in ("image name", "image", "image_name")):
                    continue
                if len(cells) != columns:
                    for _ in range(spanned):
                        number += 1
                        yield Row(
                            number, image=cells[0], problem="wrong columns" if spanned == 1 else "unbalanced quote"
                        )
                    continue
                number += 1
                image, *question, answer = (cell.strip() for cell in cells)
                yield Row(number, image, question[0] if question else None, answer)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: after row {number}: {error}; save the file as UTF-8 CSV") from error


def _read_json(path: Path, kind: str) -> Iterator[Row]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(items, list):
        raise InputError(f"{path}: must hold a list of samples, found {type(items).__name__}")
    for number, item in enumerate(items, 1):
        yield _json_row(number, item, kind)


def _json_row(number: int, item: Any, kind: str) -> Row:
    try:
        image = item["images"][0]
        question, answer = (message["content"] for message in item["messages"])
        question, answer = question.replace("<image>", "").strip(), answer.strip()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Row(number, problem="wrong columns")
    return Row(number, str(image), None if kind == "caption" else question, answer)


def index_images(image_root: Path) -> dict[str, list[str]]:
    """Relative paths of the images below `image_root` by their stem in lower case, one per folder.

    Texts name images by the authors' own paths and suffixes, so the stem counts. In one folder the order of
    `IMAGE_SUFFIXES` decides; files in folders named `...original` count where there is nothing else, optical twins in
    folders named `RGB...` never.
    """
    if not image_root.is_dir():
        raise InputError(f"--image_root {image_root}: no such folder")
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for folder, subfolders, names in os.walk(image_root):
        subfolders[:] = sorted(name for name in subfolders if not name.lower().startswith("rgb"))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                relative = os.path.relpath(os.path.join(folder, name), image_root)
                rank = (IMAGE_SUFFIXES.index(suffix.lower()), relative)
                places = found.setdefault(stem.lower(), {})
                places[folder] = min(rank, places.get(folder, rank))
    index = {}
    for stem, places in found.items():
        paths = [relative for _, relative in places.values()]
        index[stem] = [path for path in paths if "original" not in os.path.dirname(path).lower()] or paths
    return index


@dataclass(frozen=True)
class Prompts:
    """How questions are put: `vqa` holds `{question}`; `class_prefix` is `auto`, `always` or `never`."""

    caption_concise: str = CAPTION_PROMPT
    caption_complex: str = CAPTION_PROMPT
    vqa: str = VQA_PROMPT
    class_prefix: str = "auto"


def convert(
    root: Path, image_root: Path, val_fraction: float, prompts: Prompts
) -> tuple[list[Record], list[Rejection], dict[str, str]]:
    """Read the release into records.

    Args:
        root: Holds the text files at any depth.
        image_root: Holds the images at any depth; record paths are relative to it.
        val_fraction: Of the training images, carved out as `val`.

    Returns:
        Records, one rejection for every row that is in none of them, and the hash of every text file.
    """
    files = find_text_files(root)
    images = index_images(image_root)
    kinds = {file.kind for file in files}
    prefixed = prompts.class_prefix == "always" or (prompts.class_prefix == "auto" and {"vqa1", "vqa2"} <= kinds)
    sizes: dict[str, tuple[int, int] | str] = {}
    records: dict[tuple[str, str], Record] = {}
    rejections: list[Rejection] = []
    for file, path in files.items():
        name = str(path.relative_to(root))
        for row in tqdm(read_rows(path, file.kind), desc=name, unit=" rows"):
            relative, problem = _locate(row, images)
            if not problem:
                if relative not in sizes:
                    sizes[relative] = header_size(image_root, relative)
                if isinstance(sizes[relative], str):
                    problem = sizes[relative]
            if problem:
                rejections.append(Rejection(name, row.number, row.image, problem))
                continue
            record = records.get((relative, file.split))
            if record is None:
                width, height = sizes[relative]
                source = source_of(Path(relative).stem)
                record = Record([relative], width, height, source, file.split, resolution_m=RESOLUTION_M.get(source))
                records[relative, file.split] = record
            record.dialogues.append(_dialogue(f"{path.stem}:{row.number}", row, file, prompts, prefixed))
    return (
        carve_val(list(records.values()), val_fraction),
        rejections,
        {str(path.relative_to(root)): file_hash(path) for path in files.values()},
    )


def _locate(row: Row, images: dict[str, list[str]]) -> tuple[str | None, str | None]:
    """(relative image path, None), or (None, why the row cannot be used)."""
    if row.problem:
        return None, row.problem
    if row.question == "":
        return None, "empty question"
    if not row.answer:
        return None, "empty answer"
    if SPECIAL_TOKEN.search(f"{row.question} {row.answer}"):
        return None, "special token in the text"
    parts = re.split(r"[\\/]", row.image)
    candidates = images.get(os.path.splitext(parts[-1])[0].lower(), [])
    if not candidates:
        return None, "path leaves the image root" if ".." in parts else "image not found"
    if len(candidates) > 1:  # the folder named in the text tells equal names apart, such as train/1.png and val/1.png
        folders = [part.lower() for part in parts[:-1]]
        shared = [len(set(folders) & set(Path(relative.lower()).parts[:-1])) for relative in candidates]
        candidates = [path for path, count in zip(candidates, shared, strict=True) if count == max(shared)]
    return (candidates[0], None) if len(candidates) == 1 else (None, "several images of this name")


def _dialogue(identifier: str, row: Row, file: TextFile, prompts: Prompts, prefixed: bool) -> Dialogue:
    if row.question is None:
        style = file.style or style_of(row.answer)
        prompt = prompts.caption_concise if style == "concise" else prompts.caption_complex
        return Dialogue(identifier, f"caption_{style}", "description", [Turn(prompt, row.answer)], style)
    task = task_of(row.question)
    question = row.question
    if prefixed and file.kind == "vqa1":
        question = f"{POSITION_PREFIX if task == 'positioning' else CLASS_PREFIX} {question}"
    return Dialogue(identifier, file.kind, task, [Turn(prompts.vqa.replace("{question}", question), row.answer)])


def write_texts(folder: Path, stem: str, rows: list[tuple[str, str | None, str]]) -> None:
    """Write `<stem>.csv` and `<stem>.json` as the release does.

    Args:
        rows: (image file name, question or None in caption files, answer).
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = rows[0][1] is None
    with open(folder / f"{stem}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Image Name", "Caption"] if captions else ["Image Name", "Question", "Answer"])
        writer.writerows(
            [image, answer] if captions else [image, question, answer] for image, question, answer in rows
        )
    samples = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{question or CAPTION_PROMPT}"},
                {"role": "assistant", "content": answer},
            ],
            "images": [f"SARimages/{image}"],
        }
        for image, question, answer in rows
    ]
    (folder / f"{stem}.json").write_text(json.dumps(samples, indent=1) + "\n", encoding="utf-8")
