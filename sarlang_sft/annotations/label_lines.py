"""Label files of text: one line per box, named after their image (YOLO and DOTA)."""

from pathlib import Path, PurePosixPath

from sarlang_sft.annotations.model import MarkedImage, SourceFile

NOT_LABELS = ("classes", "readme", "readme.roboflow", "readme.dataset", "predefined_classes")
_BEGIN = 4096  # characters


def empty_image(file: SourceFile) -> MarkedImage:
    """The image of a label file, still without boxes."""
    name = str(PurePosixPath(file.name).with_suffix(""))
    return MarkedImage(file.name, 1, name, file.split, [], folders=file.folders)


def read_lines(path: Path) -> list[str] | None:
    """The lines of a text file; None if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None


def first_words(path: Path) -> list[str]:
    """The words of the first line that is not empty; none of a file that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            begin = file.read(_BEGIN).strip()
    except OSError:
        return []
    return begin.split("\n")[0].split()


def read_numbers(words: list[str]) -> list[float] | None:
    """Words as numbers; None if one is none."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
