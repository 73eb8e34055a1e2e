"""Pascal VOC: one XML file per image, upright boxes by their corners or, as roLabelImg writes them, turned ones."""

import math
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tqdm import tqdm

from sarlang_sft.annotations.model import (
    AnnotationOptions,
    MarkedBox,
    MarkedImage,
    Reading,
    SourceFile,
    stated_size,
)
from sarlang_sft.errors import InputError, nearest

VOC_CORNERS = ("auto", "one_based", "zero_based")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")
_BEGIN = 4096  # bytes in which the first element begins


class _EntityError(ValueError):
    """An XML file declares entities: a few hundred bytes could grow to gigabytes, or name other files."""


def looks_like_voc(path: Path) -> bool:
    """Whether an XML file begins as VOC's do."""
    with open(path, "rb") as file:
        return b"<annotation" in file.read(_BEGIN)


def read_voc(files: list[SourceFile], options: AnnotationOptions) -> Reading:
    """One image per file; what is broken in a file costs that image alone. Classes are sorted.

    Args:
        options: `voc_corners` decides what corners mean. VOC itself counts pixels from 1, and both corners belong to
            the box; others give positions from 0. Boxes with an angle are positions as they are.

    Raises:
        InputError: `voc_corners` is none of `VOC_CORNERS`.
    """
    corners = options.voc_corners
    if corners not in VOC_CORNERS:
        raise InputError(f"--voc_corners {corners}: {nearest(corners, VOC_CORNERS, ', '.join(VOC_CORNERS))}")
    images = [_read_file(file) for file in tqdm(files, desc="annotations", unit=" files")]
    upright = [box.points for image in images for box in image.boxes if box.points and len(box.points) == 4]
    lowest = min((value for points in upright for value in points[:2]), default=None)
    notes = []
    if corners == "auto" and lowest is not None:
        corners = "zero_based" if lowest <= 0 else "one_based"
        notes.append(
            f"VOC corners taken as {corners}, since the lowest is {lowest:g}; if that is wrong, give --voc_corners"
        )
    if corners == "one_based":
        images = [replace(image, boxes=[_from_zero(box) for box in image.boxes]) for image in images]
    return Reading(images, sorted({box.label for image in images for box in image.boxes}), [], notes)


def _from_zero(box: MarkedBox) -> MarkedBox:
    """A box whose corners counted from 1 and belonged to it."""
    if box.points is None or len(box.points) != 4:
        return box
    x, y, width, height = box.points
    return replace(box, points=[x - 1, y - 1, width + 1, height + 1])


def _read_file(file: SourceFile) -> MarkedImage:
    stem = PurePosixPath(file.name).with_suffix("")
    bare = MarkedImage(file.name, 1, stem.name, file.split, [], places=(str(stem),), folders=file.folders)
    try:
        root = _parse(file.path.read_bytes())
    except OSError:
        return replace(bare, problem="annotation file unreadable")
    except _EntityError:
        return replace(bare, problem="XML that declares entities")
    except (expat.ExpatError, ValueError, LookupError):  # the latter two: of encodings that are not known
        return replace(bare, problem="broken XML")
    if root.tag != "annotation":
        return replace(bare, problem="XML without an annotation")
    name = _text(root, "filename").replace("\\", "/")
    return replace(
        bare,
        name=name or bare.name,
        places=(str(stem.parent / name), name, str(stem)) if name else bare.places,
        size=stated_size(_text(root, "size/width"), _text(root, "size/height")),
        boxes=[_read_object(row, entry) for row, entry in enumerate(root.findall("object"), 1)],
    )


def _parse(content: bytes) -> Element:
    """The first element of an XML file.

    Raises:
        _EntityError: It declares entities.
        ExpatError, ValueError, LookupError: It is broken.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse
    parser.buffer_text = True
    parser.Parse(content, True)
    return builder.close()


def _refuse(name: str, *others: object) -> None:
    raise _EntityError(name)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _read_object(row: int, entry: Element) -> MarkedBox:
    turned, upright = entry.find("robndbox"), entry.find("bndbox")
    points, problem = None, None
    if turned is None and upright is None:
        problem = "no box"
    else:
        numbers = _numbers(upright, _CORNERS) if turned is None else _numbers(turned, _TURNED)
        problem = "box not of finite numbers" if numbers is None else None
        if numbers is not None:
            points = _upright(*numbers) if turned is None else _turned(*numbers)
    doubtful = _text(entry, "difficult").lower() not in ("", "0", "false")
    return MarkedBox(row, _text(entry, "name"), points, problem, doubtful)


def _numbers(element: Element, names: tuple[str, ...]) -> list[float] | None:
    try:
        numbers = [float(_text(element, name)) for name in names]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _upright(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right - left, bottom - top]


def _turned(x: float, y: float, width: float, height: float, angle: float) -> list[float]:
    """The corners of a box of this centre, turned clockwise by `angle` radians; negative sides give no box."""
    cos, sin = math.cos(angle), math.sin(angle)
    width, height = max(width, 0.0), max(height, 0.0)
    sides = [(-width, -height), (width, -height), (width, height), (-width, height)]
    return [
        value
        for across, down in sides
        for value in (x + (across * cos - down * sin) / 2, y + (across * sin + down * cos) / 2)
    ]
