"""Lists of class names, for annotations that hold class numbers alone."""

from pathlib import Path
from typing import Any

import yaml

from sarlang_sft.annotations.model import SourceFile
from sarlang_sft.errors import InputError

LISTS = ("classes.txt", "obj.names")
YAML_SUFFIXES = (".yaml", ".yml")
_UPWARDS = 3  # folders above an annotation file that are looked into: set/labels/train

ClassList = list[str] | dict[int, str]
"""Names in the order of their lines, or by number."""


def find_class_list(files: list[SourceFile], given: str | None) -> tuple[ClassList, str]:
    """The class names of annotation files and the file that they are from.

    Args:
        given: Path of that file; None: the nearest one in the files' folders or above: classes.txt, obj.names, or a
            YAML file with `names`.

    Raises:
        InputError: There is none, there are several that differ, or the given one cannot be read.
    """
    if given:
        return read_class_list(Path(given)), given
    found = {}
    for folder in sorted({file.path.absolute().parent for file in files}):
        found |= _nearest_lists(folder)
    if not found:
        raise InputError(
            f"--class_names: no {', '.join(LISTS)} or YAML file with `names` in or above "
            f"{files[0].path.parent}; give the file that holds the class names, one a line"
        )
    (path, names), *others = found.items()
    for other, content in others:
        if content != names:
            raise InputError(f"--class_names: {path} and {other} hold different classes; give the right one")
    return names, str(path)


def _nearest_lists(folder: Path) -> dict[Path, ClassList]:
    """The class lists of the nearest folder upwards that holds any."""
    for place in (folder, *folder.parents[:_UPWARDS]):
        paths = [place / name for name in LISTS]
        paths += sorted(path for path in place.glob("*") if path.suffix.lower() in YAML_SUFFIXES)
        found = {path: names for path in paths if path.is_file() and (names := _read_if_any(path))}
        if found:
            return found
    return {}


def _read_if_any(path: Path) -> ClassList | None:
    """The class list of a file that may be something else."""
    try:
        return read_class_list(path, must_have_names=True)
    except InputError:
        return None


def read_class_list(path: Path, must_have_names: bool = False) -> ClassList:
    """The class names of a file, one a line, or of a YAML file: a list, or a mapping of numbers to names.

    Args:
        must_have_names: In a YAML file they stand under `names`; otherwise they may also be the whole file.

    Raises:
        InputError: The file is missing, or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() not in YAML_SUFFIXES:
            names = [line.strip() for line in text.rstrip().splitlines()]
        else:
            content = yaml.load(text, yaml.BaseLoader)  # which leaves every value a string: `no` is a name as well
            names = _names(content, must_have_names)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--class_names {path}: holds no class names ({error}); give one a line") from error
    if not any(names.values() if isinstance(names, dict) else names):
        raise InputError(f"--class_names {path}: is empty; give one class name a line")
    return names


def _names(content: Any, must_have_names: bool) -> ClassList:
    """Raises ValueError if there are none."""
    if isinstance(content, dict) and "names" in content:
        content = content["names"]
    elif must_have_names:
        raise ValueError("no `names`")
    if isinstance(content, dict) and all(isinstance(name, str) for name in content.values()):
        return {int(number): name for number, name in content.items()}
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    raise ValueError("`names` is neither a list nor a mapping of numbers to names")
