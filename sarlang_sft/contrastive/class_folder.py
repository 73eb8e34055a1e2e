"""Recognition sets as folders, `ROOT/<class>/<images at any depth>`, and what their classes are called."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.image_files import IMAGE_SUFFIXES, path_inside
from sarlang_sft.yaml_files import read_mapping


class ClassFolder(NamedTuple):
    """Images with their classes.

    Attributes:
        root: Where they lie.
        names: Of the classes, sorted: the folders' names.
        spoken: The classes as texts say them, all different.
        paths: Every image.
        labels: (n,) int64, the row in `names` of each.
        left_out: The reason by file, for those that are no images of a class.
    """

    root: Path
    names: list[str]
    spoken: list[str]
    paths: list[Path]
    labels: np.ndarray
    left_out: dict[Path, str]

    def only(self, rows: np.ndarray) -> "ClassFolder":
        """The same classes with some of the images."""
        return self._replace(paths=[self.paths[row] for row in rows], labels=self.labels[rows])


def read_class_folder(root: Path, class_names: Path | None = None, option: str = "--root") -> ClassFolder:
    """The images of every class, told by their suffixes and not opened; hidden folders are no classes.

    Args:
        class_names: A file of [`read_class_names`]; without it, folder names are spoken with spaces for underscores.
        option: Names `root` in messages.

    Raises:
        InputError: There is no such folder, fewer than two classes, a class without images or out of the root, or
            texts could not tell two classes apart.
    """
    if not root.is_dir():
        raise InputError(f"{option} {root}: no such folder; it must hold one folder per class")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise InputError(f"{option} {root}: needs at least two class folders, holds {', '.join(names) or 'none'}")
    left_out = {path: "not in a class folder" for path in sorted(root.iterdir()) if not path.is_dir()}
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        before = len(paths)
        for path in sorted(path_inside(root, name).rglob("*")):
            if path.is_dir():
                continue
            try:
                found = path_inside(root, str(path))
            except InputError:
                left_out[path] = "a link out of the folder"
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                paths.append(found)
                labels.append(label)
            else:
                left_out[path] = "not an image file"
        if len(paths) == before:
            raise InputError(
                f"{option} {root}: class {name} has no images ({', '.join(IMAGE_SUFFIXES)}); add some, or remove its "
                "folder"
            )
    spoken = spoken_names(names, read_class_names(class_names) if class_names else None, f"{option} {root}")
    return ClassFolder(root, names, spoken, paths, np.array(labels, np.int64), left_out)


def read_class_names(file: Path) -> dict[str, str]:
    """A YAML or JSON mapping of folder names to spoken names.

    Raises:
        InputError: It cannot be read, or a name is no text or empty (YAML reads `072` as a number: quote it).
    """
    try:
        content = read_mapping(file, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class_names {file}: cannot be read ({error})") from error
    for folder, said in content.items():
        if not isinstance(folder, str) or not isinstance(said, str) or not said.strip():
            raise InputError(
                f"--class_names {file}: `{folder}: {said}` must be two texts, the folder's name and the spoken one; "
                "quote them"
            )
    return content


def spoken_names(names: list[str], given: Mapping[str, str] | None, where: str) -> list[str]:
    """What texts call the classes, in their order; raises [`InputError`] if one has no name or two have the same."""
    if given is None:
        spoken = [" ".join(name.replace("_", " ").split()) for name in names]
    else:
        if missing := [name for name in names if name not in given]:
            way_out = nearest(missing[0], given, "name every folder")
            raise InputError(f"--class_names: has no name for the folder {missing[0]} of {where}; {way_out}")
        spoken = [given[name].strip() for name in names]
    first: dict[str, str] = {}
    for name, said in zip(names, spoken, strict=True):
        if not said or said in first:
            why = f"as {first[said]} is" if said else "which says nothing"
            raise InputError(f"{where}: {name} is spoken as {said!r}, {why}; give other names in --class_names")
        first[said] = name
    return spoken


def check_same_classes(train: ClassFolder, test: ClassFolder) -> None:
    """Raise [`InputError`], naming the difference, unless both have the same classes, and are two folders."""
    if train.root.resolve() == test.root.resolve():
        raise InputError(f"--train and --test {test.root}: are the same folder; test on images that were not learned")
    missing, foreign = sorted({*train.names} - {*test.names}), sorted({*test.names} - {*train.names})
    if missing or foreign:
        told = [f"{test.root} lacks {', '.join(missing)}"] if missing else []
        told += [f"{train.root} lacks {', '.join(foreign)}"] if foreign else []
        raise InputError(f"--train and --test: their classes differ: {'; '.join(told)}")


def few_shots(train: ClassFolder, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`shots` images of every class, drawn at random, and the others of each in random order.

    Returns:
        Rows of the drawn, and rows of the rest, (n,) int64 each.

    Raises:
        InputError: `shots` is less than 1, or a class has fewer images.
    """
    if shots < 1:
        raise InputError(f"--shots {shots}: must be 1 or more")
    rng = np.random.default_rng(seed)
    drawn, rest = [], []
    for label, name in enumerate(train.names):
        rows = rng.permutation(np.flatnonzero(train.labels == label))
        if len(rows) < shots:
            raise InputError(f"--shots {shots}: class {name} has {len(rows)} images in {train.root}")
        drawn.append(rows[:shots])
        rest.append(rows[shots:])
    return np.concatenate(drawn), np.concatenate(rest)
