"""Annotations in any of the known formats, from files and folders of one set or several."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sarlang_sft.annotations.coco import looks_like_coco, read_coco
from sarlang_sft.annotations.dota import looks_like_dota, read_dota
from sarlang_sft.annotations.labels import clean_label, label_problem
from sarlang_sft.annotations.masks import MASK_SUFFIXES, read_class_masks, read_instance_masks
from sarlang_sft.annotations.model import AnnotationOptions, MarkedImage, Problem, Reader, SourceFile
from sarlang_sft.annotations.voc import looks_like_voc, read_voc
from sarlang_sft.annotations.yolo import looks_like_yolo, read_yolo
from sarlang_sft.errors import InputError, nearest
from sarlang_sft.records import SPLITS, file_hash
from sarlang_sft.splits import SPLIT_NAMES, split_of

AUTO = "auto"
_PROBED = 20  # files of a source that are looked at to tell its format


@dataclass(frozen=True)
class AnnotationFormat:
    """A format and how its files are found.

    Attributes:
        suffixes: Of its files, in lower case.
        looks_right: Whether a file of such a suffix begins as this format does; None: that cannot be told.
        holds_sets: A file holds many images, so that its own name may state the split; others are named as their
            image is.
        numbers_classes: Its files name classes by numbers, whose names stand elsewhere.
    """

    suffixes: tuple[str, ...]
    read: Reader
    looks_right: Callable[[Path], bool] | None
    holds_sets: bool = False
    numbers_classes: bool = False


FORMATS = {
    "coco": AnnotationFormat((".json",), read_coco, looks_like_coco, holds_sets=True),
    "voc": AnnotationFormat((".xml",), read_voc, looks_like_voc),
    "yolo": AnnotationFormat((".txt",), read_yolo, looks_like_yolo, numbers_classes=True),
    "dota": AnnotationFormat((".txt",), read_dota, looks_like_dota),
    "class_masks": AnnotationFormat(MASK_SUFFIXES, read_class_masks, None, numbers_classes=True),
    "instance_masks": AnnotationFormat(MASK_SUFFIXES, read_instance_masks, None, numbers_classes=True),
}


@dataclass(frozen=True)
class AnnotationSet:
    """What annotation files say.

    Attributes:
        format: A name of `FORMATS`.
        classes: Labels as texts have them, in the order of their list where there is one, else sorted.
        problems: With entries that belong to no image.
        inputs: SHA-256 by path, relative to the folder that all sources lie in: of single files, and of a folder one
            over the names and contents of its annotation files.
        notes: What had to be decided, to be printed.
    """

    format: str
    images: list[MarkedImage]
    classes: list[str]
    problems: list[Problem]
    inputs: dict[str, str]
    notes: list[str]


class _Source(NamedTuple):
    """A file or folder as it was given, in the split that was given with it."""

    given: str
    path: Path
    split: str | None


def read_annotations(
    sources: Iterable[str], format: str = AUTO, split: str = "train", options: AnnotationOptions | None = None
) -> AnnotationSet:
    """Read everything that annotation files say about images, without looking for these.

    Args:
        sources: Each a file or a folder with files at any depth, `PATH` or `split=PATH`.
        format: A name of `FORMATS`; `auto` looks at the files, and cannot tell masks.
        split: Of files that are given without one and do not state it: COCO files by their own name, files of single
            images by the names of their folders alone.
        options: What annotations do not say themselves.

    Raises:
        InputError: A source or its files are not there, the format cannot be told, or a file cannot be read as a
            whole; broken images and boxes are `problem`s instead.
    """
    given = [_parse_source(source) for source in sources]
    if not given:
        raise InputError("--annotations: name at least one file or folder")
    if len({source.path.absolute() for source in given}) < len(given):
        raise InputError("--annotations: a file or folder is given twice; give each once")
    if split not in SPLITS:
        raise InputError(f"--split {split}: {nearest(split, SPLITS, 'one of ' + ', '.join(SPLITS))}")
    if format not in (AUTO, *FORMATS):
        raise InputError(f"--format {format}: {nearest(format, FORMATS, 'one of ' + ', '.join((AUTO, *FORMATS)))}")
    format = _detect(given) if format == AUTO else format
    origin = FORMATS[format]
    folders = [source.path if source.path.is_dir() else source.path.parent for source in given]
    common = Path(os.path.commonpath(folders))
    files, inputs = [], {}
    for source in given:
        paths = _paths(source, origin.suffixes)
        if not paths:
            raise InputError(
                f"--annotations {source.given}: no {' or '.join(origin.suffixes)} file there, as --format {format} "
                "has them; give the folder that holds them, or another format"
            )
        inputs[os.path.relpath(source.path, common)] = _hash(source.path, paths)
        files.extend(_source_file(path, source, common, origin.holds_sets, split) for path in paths)
    reading = origin.read(files, options or AnnotationOptions())
    if options and options.class_names:
        if not origin.numbers_classes:
            raise InputError(f"--class_names {options.class_names}: {format} names its classes itself; leave it out")
        inputs[options.class_names] = file_hash(Path(options.class_names))
    labels = dict.fromkeys(map(clean_label, reading.classes))
    classes = [label for label in labels if not label_problem(label)]
    return AnnotationSet(format, reading.images, classes, reading.problems, inputs, reading.notes)


def _parse_source(text: str) -> _Source:
    word, equals, path = text.partition("=")
    split = SPLIT_NAMES.get(word.lower()) if equals else None
    path = Path(os.path.abspath(path if split else text))
    if not path.exists():
        raise InputError(
            f"--annotations {text}: no such file or folder; give PATH or SPLIT=PATH with one of {', '.join(SPLITS)}"
        )
    return _Source(text, path, split)


def _paths(source: _Source, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a source, sorted; hidden ones are none. A link to nothing is one, which costs its image."""
    if source.path.is_file():
        return [source.path] if source.path.suffix.lower() in suffixes else []
    found = []
    for folder, subfolders, names in os.walk(source.path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or not path.exists())  # the rest are pipes and devices


def _source_file(path: Path, source: _Source, common: Path, holds_sets: bool, split: str) -> SourceFile:
    words = [path.name] if holds_sets else []
    if source.path.is_dir():
        words = [source.path.name, *path.relative_to(source.path).parts[:-1], *words]
    stated = split_of("/".join(words))
    folders = tuple(dict.fromkeys(name for name in (stated, source.split) if name))
    return SourceFile(path, path.relative_to(common).as_posix(), source.split or stated or split, folders)


def _hash(source: Path, paths: list[Path]) -> str:
    if source.is_file():
        return _content_hash(source)
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.relative_to(source).as_posix()!r} {_content_hash(path)}\n".encode())
    return whole.hexdigest()


def _content_hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError:  # which costs the images of this file alone
        return "unreadable"


def _detect(sources: list[_Source]) -> str:
    """The one format that the sources' files begin as."""
    found = [
        name
        for name, origin in FORMATS.items()
        if origin.looks_right is not None and any(_looks_right(source, origin) for source in sources)
    ]
    given = " ".join(source.given for source in sources)
    if len(found) > 1:
        raise InputError(f"--annotations {given}: holds files of {' and '.join(found)}; choose one with --format")
    if not found:
        raise InputError(
            f"--annotations {given}: no file that begins as those of a known format do; say which it is with --format "
            f"(masks must be named: {', '.join(name for name, origin in FORMATS.items() if not origin.looks_right)})"
        )
    return found[0]


def _looks_right(source: _Source, origin: AnnotationFormat) -> bool:
    try:
        return any(origin.looks_right(path) for path in _paths(source, origin.suffixes)[:_PROBED])
    except OSError:
        return False
