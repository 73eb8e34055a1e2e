"""The text files of the SARLANG-1M release: finding them in a folder or archive, reading, comparing, writing them.

CSV and JSON are read row by row, so that memory does not grow with the file. A row that cannot be read is passed on
with its problem; none is lost.
"""

import csv
import io
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from sarlang_sft.errors import InputError
from sarlang_sft.image_lookup import stem_of
from sarlang_sft.json_items import read_json_items

CAPTION_PROMPT = "Describe the content of this image in one sentence."


class Part(NamedTuple):
    """What a text file holds; `kind` is `caption vqa1 vqa2`, and a caption file without a style mixes both."""

    split: str
    kind: str
    style: str | None = None


# By file stem, lower case without - and _ : the README and the unpacked archive spell them differently.
PARTS = {
    "captiontrain": Part("train", "caption"),
    "captiontraining": Part("train", "caption"),
    "captiontest": Part("test", "caption", "complex"),
    "captiontest1": Part("test", "caption", "concise"),
    "sarvqa1train": Part("train", "vqa1"),
    "sarvqa2train": Part("train", "vqa2"),
    "sarvqa1test": Part("test", "vqa1"),
    "sarvqa2test": Part("test", "vqa2"),
}
SUFFIXES = (".json", ".csv")  # in order of preference
ARCHIVE = "text.zip"

_HEADERS = {  # column names of the published CSV files, lower case without spaces and _
    "imagename": "image",
    "image": "image",
    "filename": "image",
    "caption": "answer",
    "question": "question",
    "answer": "answer",
}
_ROW = re.compile(r"""\s*"?[^",]+\.(png|jpe?g|bmp|tiff?)"?\s*,""", re.IGNORECASE)
_COLUMNS = {"caption": ("image", "answer"), "vqa1": ("image", "question", "answer")}
_COLUMNS["vqa2"] = _COLUMNS["vqa1"]


@dataclass(frozen=True)
class TextFile:
    """One text file: below a folder, or a `member` of the archive at `path`."""

    part: Part
    path: Path
    member: str | None = None

    @property
    def inner(self) -> Path:
        """The file's own path, inside the archive where it lies in one."""
        return Path((self.member or str(self.path)).replace("\\", "/"))

    def outer(self, root: Path) -> str:
        """The path below `root` of the file, or of the archive it lies in."""
        return self.path.name if self.path == root else str(self.path.relative_to(root))

    def name(self, root: Path) -> str:
        """The path below `root` as messages show it, with the archive in front."""
        return f"{self.outer(root)}/{self.member}" if self.member else self.outer(root)


class Row(NamedTuple):
    """One row of a text file; `question` is None in caption files, `problem` says why a row cannot be used."""

    number: int
    image: str = ""
    question: str | None = None
    answer: str = ""
    problem: str | None = None


def find_text_files(root: Path) -> dict[Part, list[TextFile]]:
    """The release's text files, at any depth and in any case: for every part the one to read, then its twin if any.

    JSON is preferred to CSV. `Text.zip` is read as it is where no file of that part and suffix lies unpacked.

    Args:
        root: The unpacked release, or `Text.zip` itself.

    Raises:
        InputError: There is none, two of one suffix hold the same part, or an archive is broken.
    """
    if not root.exists():
        raise InputError(f"--root {root}: no such folder")
    if root.is_file() and root.suffix.lower() != ".zip":
        raise InputError(f"--root {root}: give the folder of the release, or its Text.zip")
    loose, archives = ([], [root]) if root.is_file() else _walk(root)
    found = _by_part(root, loose)
    packed = [file for archive in archives for file in _in_archive(archive)]
    files = _by_part(root, packed) | found
    if not files:
        raise InputError(
            f"--root {root}: no text file of the release below it (such as Text/VQA/train/SARVQA1_train.json)"
        )
    return {
        part: [files[part, suffix] for suffix in SUFFIXES if (part, suffix) in files]
        for part in dict.fromkeys(PARTS.values())
        if any((part, suffix) in files for suffix in SUFFIXES)
    }


def _part_of(path: Path) -> Part | None:
    return PARTS.get(re.sub(r"[-_ ]", "", path.stem.lower())) if path.suffix.lower() in SUFFIXES else None


def _walk(root: Path) -> tuple[list[TextFile], list[Path]]:
    """Text files and archives below a folder."""
    files, archives = [], []
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            part = _part_of(path)
            if not (part or path.name.lower() == ARCHIVE):
                continue
            if not path.resolve().is_relative_to(root.resolve()):
                raise InputError(f"{path}: is a link out of --root; put the file itself there")
            if part:
                files.append(TextFile(part, path))
            else:
                archives.append(path)
    return files, archives


def _in_archive(path: Path) -> list[TextFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a whole zip archive ({error}); download it again") from error
    parts = [(_part_of(Path(member.replace("\\", "/"))), member) for member in sorted(members)]
    return [TextFile(part, path, member) for part, member in parts if part]


def _by_part(root: Path, files: list[TextFile]) -> dict[tuple[Part, str], TextFile]:
    found: dict[tuple[Part, str], TextFile] = {}
    for file in files:
        other = found.setdefault((file.part, file.inner.suffix.lower()), file)
        if other is not file:
            raise InputError(
                f"--root {root}: {other.name(root)} and {file.name(root)} hold the same texts; remove one of them"
            )
    return found


@contextmanager
def _open(file: TextFile) -> Iterator[TextIO]:
    """The text; bytes that are not UTF-8 come as lone surrogates, which no valid text holds."""
    how = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    try:
        if file.member is None:
            with open(file.path, **how) as text:
                yield text
        else:
            with zipfile.ZipFile(file.path) as archive, archive.open(file.member) as packed:
                yield io.TextIOWrapper(packed, **how)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # cut off, or encrypted
        raise InputError(f"{file.path}: {file.inner.name} cannot be read ({error}); download it again") from error


def read_rows(file: TextFile) -> Iterator[Row]:
    """The rows of one text file, numbered from 1 (header not counted); unusable ones carry a `problem`.

    Raises:
        InputError: The file cannot be read at all.
    """
    read = _read_json if file.inner.suffix.lower() == ".json" else _read_csv
    with _open(file) as text:
        for row in read(text, file.part.kind):
            words = f"{row.image}{row.question or ''}{row.answer}"
            if not row.problem and not words.isascii() and not is_unicode(words):
                row = Row(row.number, ascii(row.image)[1:-1], problem="not UTF-8 text")
            yield row


def is_unicode(text: str) -> bool:
    """Whether a string can be stored: files of others also bring halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Lines:
    """Lines of a file that remembers those taken since `taken` was emptied, and takes lines back."""

    def __init__(self, file: Iterable[str]) -> None:
        self.waiting: list[str] = []
        self.file = iter(file)
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.waiting.pop() if self.waiting else next(self.file)
        self.taken.append(line)
        return line

    def put_back(self, lines: list[str]) -> None:
        self.waiting += reversed(lines)


def _read_csv(text: TextIO, kind: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # an unbalanced quote makes one field of all that follows
    columns = _COLUMNS[kind]
    lines = _Lines(text)
    number = 0
    for cells in csv.reader(lines, skipinitialspace=True):
        taken, lines.taken = lines.taken, []
        if not cells:
            continue
        if number == 0 and (header := _header(cells, kind)):
            columns = header
            continue
        number += 1
        if (len(taken) > 1 or taken[0].count('"') % 2) and not _closes(taken):  # such a quote costs its own line alone
            lines.put_back(taken[1:])
            yield Row(number, taken[0].split(",")[0].strip(), problem="unbalanced quote")
        elif len(cells) == len(columns):
            values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
            yield Row(number, values["image"], values.get("question"), values["answer"])
        else:
            yield Row(number, cells[0].strip(), problem="wrong columns")


def _closes(lines: list[str]) -> bool:
    """Whether every quote of a row ends where its cell ends, and no line of it but the first begins like a row."""
    if any(_ROW.match(line) for line in lines[1:]):
        return False
    try:
        list(csv.reader(lines, skipinitialspace=True, strict=True))
    except csv.Error:
        return False
    return True


def _header(cells: list[str], kind: str) -> tuple[str, ...] | None:
    """The columns by their names, `""` for one that is not ours; None if this is no header."""
    names = [re.sub(r"[\s_]", "", cell.lower()) for cell in cells]
    columns = tuple(_HEADERS.get(name, "") for name in names)
    return columns if sorted(filter(None, columns)) == sorted(_COLUMNS[kind]) else None


def _read_json(text: TextIO, kind: str) -> Iterator[Row]:
    for number, item in enumerate(read_json_items(text), 1):
        yield Row(number, problem="broken JSON") if item is None else _json_row(number, item, kind)


def _json_row(number: int, item: Any, kind: str) -> Row:
    try:
        image = item["images"] if isinstance(item["images"], str) else item["images"][0]
        asked, answered = item["messages"]
        question, answer = asked["content"].replace("<image>", "").strip(), answered["content"].strip()
        roles = (asked["role"], answered["role"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Row(number, problem="wrong columns")
    if roles != ("user", "assistant") or not isinstance(image, str):
        return Row(number, problem="wrong columns")
    return Row(number, image.strip(), None if kind == "caption" else question, answer)


def compare_twins(root: Path, strict: bool) -> None:
    """Where a part of the release comes as JSON and CSV, say which is read and whether their rows agree.

    Rows agree in image (by its stem), question and answer; their order does not count, and rows that cannot be read
    agree with none.

    Raises:
        InputError: `strict`, and two files disagree.
    """
    wrong = []
    for first, second in (twins for twins in find_text_files(root).values() if len(twins) == 2):
        here, there = count_differences(first, second)
        read = f"{first.name(root)}: read; {second.name(root)}"
        if here or there:
            wrong.append(first.name(root))
            print(f"  {read} DISAGREES: {here:,} rows only in the first, {there:,} only in the second", flush=True)
        else:
            print(f"  {read} holds the same rows", flush=True)
    if strict and wrong:
        raise InputError(f"--strict: JSON and CSV disagree: {', '.join(wrong)}; remove the wrong one of each")


def count_differences(first: TextFile, second: TextFile) -> tuple[int, int]:
    """How many rows only the first, and only the second of two files holds."""
    (mine, many), (theirs, often) = (np.unique(_digests(file), return_counts=True) for file in (first, second))
    _, here, there = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    shared = int(np.minimum(many[here], often[there]).sum())
    return int(many.sum()) - shared, int(often.sum()) - shared


def _digests(file: TextFile) -> np.ndarray:
    """(N,) int64, one for every row."""
    return np.fromiter(
        (
            hash((file.inner.suffix, row.number) if row.problem else (stem_of(row.image), *_words(row)))
            for row in read_rows(file)
        ),
        dtype=np.int64,
    )


def _words(row: Row) -> tuple[str, ...]:
    """Question and answer without what makes no difference: the kind of white space."""
    return " ".join((row.question or "").split()), " ".join(row.answer.split())


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
