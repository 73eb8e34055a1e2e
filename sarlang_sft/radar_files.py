"""Radar files as polarisations: finding what belongs to one image, and reading it by areas, with what is valid."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, TIFF_SUFFIXES, open_picture, open_tiff, path_inside
from sarlang_sft.imagery import decode_picture

POLARISATIONS = ("VV", "HH", "VH", "HV")
NAMED = re.compile(rf"(?<![A-Za-z])({'|'.join(POLARISATIONS)})(?![A-Za-z])", re.IGNORECASE)
FILE_ENDING = re.compile(rf"(.+)[_-]({'|'.join(POLARISATIONS)})", re.IGNORECASE)
LARGEST_IMAGE = 2**32  # pixels; a Sentinel-1 scene has 4e8
LARGEST_BLOCK = 2**28  # bytes that have to be decoded to read any one pixel
MOST_DENSE = 2000  # bytes of pixels per byte of file that a large image may declare; deflate reaches 1032
CACHE_BYTES = 2**28  # of GDAL in every process: a row of windows of a scene that is stored in lines


class Area(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of an image, in pixels; the ends do not belong to it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class RadarImage:
    """One image to be read: `name` is its path in the root without suffix; one file, or one for each polarisation."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Band:
    """One band of an open file.

    Attributes:
        name: Its polarisation, or its number from 1 as text.
        shape: Height and width in pixels.
        read: An area's pixels as they are stored, and which of them are valid, both (H, W).
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype
    read: Callable[[Area], tuple[np.ndarray, np.ndarray]]


def find_images(root: Path) -> tuple[list[RadarImage], dict[str, str], Counter[str]]:
    """Every image under `root`, polarisations in files of their own (`x_VV.tif`, `x_VH.tif`) joined to one.

    Returns:
        The images sorted by name, the reason for every file that cannot be one, and the number of files of other
        kinds by suffix.
    """
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    groups: dict[str, dict[str, str | None]] = {}  # the files of an image, each with the reason against it
    rejected: dict[str, str] = {}
    others: Counter[str] = Counter()
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        rejected |= {Path(folder, name).relative_to(root).as_posix(): "link to a folder" for name in links}
        for path in sorted(Path(folder, name) for name in files):
            relative = path.relative_to(root)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                others[path.suffix.lower() or path.name] += 1
                continue
            ending = FILE_ENDING.fullmatch(path.stem)
            name = relative.with_name(ending[1] if ending else path.stem).as_posix()
            groups.setdefault(name, {})[relative.as_posix()] = _reason_against(root, relative.as_posix())
    images = []
    for name, reasons in sorted(groups.items()):
        kinds = Counter(_polarisation_of_file(file) for file in reasons)
        if any(reasons.values()):
            # never the image without the bad file: its picture would be one of another polarisation
            rejected |= {file: why or "another of its polarisations is bad" for file, why in reasons.items()}
        elif len(reasons) > 1 and (None in kinds or max(kinds.values()) > 1):
            rejected |= dict.fromkeys(reasons, "several files would become one image")
        else:
            images.append(RadarImage(name, tuple(reasons)))
    return images, rejected, others


def _reason_against(root: Path, relative: str) -> str | None:
    try:
        path = path_inside(root, relative)
    except InputError:
        return "path leaves the image root"
    if not path.is_file():
        return "no plain file"
    return None if path.stat().st_size else "empty file"


def _polarisation_of_file(file: str) -> str | None:
    ending = FILE_ENDING.fullmatch(Path(file).stem)
    return ending[2].upper() if ending else None


@contextmanager
def open_bands(root: Path, image: RadarImage, wanted: list[str], nodata: float | None) -> Iterator[list[Band]]:
    """The wanted bands of an image, which can be read as long as the context lasts.

    Args:
        wanted: Polarisations or numbers; `auto` is VV, else HH, else the first band.
        nodata: Value that marks invalid pixels, instead of the file's own.

    Raises:
        InputError: The image cannot be used; the message is the reason, without its name.
    """
    with ExitStack() as files:
        files.enter_context(warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning))
        files.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        bands: list[Band] = []
        with _reasons():
            for file in image.files:
                path = path_inside(root, file)
                of_file = _tiff_bands if path.suffix.lower() in TIFF_SUFFIXES else _picture_bands
                named = _polarisation_of_file(file)
                for number, band in enumerate(of_file(path, nodata, files), len(bands) + 1):
                    bands.append(replace(band, name=band.name or named or str(number)))
        chosen = [_choose(bands, name) for name in wanted]
        if len({band.shape for band in chosen}) > 1:
            raise InputError("polarisations of different size")
        yield chosen


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn what readers raise into reasons."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels and no GeoTIFF") from error
    except Exception as error:  # decoders meet broken files with errors of every kind
        raise InputError("image unreadable") from error


def _choose(bands: list[Band], wanted: str) -> Band:
    by_name = {band.name: band for band in reversed(bands)} | {str(n): band for n, band in enumerate(bands, 1)}
    names = ("VV", "HH", "1") if wanted == "auto" else (wanted.upper(),)
    found = [by_name[name] for name in names if name in by_name]
    if not found:
        raise InputError(f"no band {wanted}")
    return found[0]


def _tiff_bands(path: Path, nodata: float | None, files: ExitStack) -> list[Band]:
    """The bands of a GeoTIFF, which `files` closes; without a name where their description has no polarisation."""
    file = files.enter_context(open_tiff(path))
    pixels, stored = file.width * file.height, path.stat().st_size
    sizes = [2 * 8 if "complex" in dtype else np.dtype(dtype).itemsize for dtype in file.dtypes]
    if pixels > LARGEST_IMAGE:
        raise InputError(f"more than {LARGEST_IMAGE:,} pixels")
    if pixels > 1e8 and pixels * sum(sizes) > MOST_DENSE * stored:
        raise InputError("declares more pixels than its bytes can hold")
    if max(np.prod(block) * sum(sizes) for block in file.block_shapes) > LARGEST_BLOCK:
        raise InputError(f"stored in blocks of more than {LARGEST_BLOCK:,} bytes; rewrite it in tiles")
    if ColorInterp.palette in file.colorinterp:
        raise InputError("colours of a palette, no radar values")

    masked = [MaskFlags.per_dataset in flags for flags in file.mask_flag_enums]

    def read(index: int, area: Area) -> tuple[np.ndarray, np.ndarray]:
        window = Window.from_slices(*area.slices)
        with _reasons():
            values = file.read(index, window=window)
            mask = file.read_masks(index, window=window) > 0 if masked[index - 1] else True
        # compared here, not by GDAL, to which a complex pixel is invalid when its real part alone is
        invalid = file.nodatavals[index - 1] if nodata is None else nodata
        return values, np.isfinite(values) & mask & (True if invalid is None else values != invalid)

    named = [NAMED.search(text or "") for text in file.descriptions]
    dtypes = [np.dtype("complex64" if "complex" in dtype else dtype) for dtype in file.dtypes]
    return [
        Band(name[1].upper() if name else "", file.shape, dtype, partial(read, index))
        for index, (name, dtype) in enumerate(zip(named, dtypes, strict=True), 1)
    ]


def _picture_bands(path: Path, nodata: float | None, files: ExitStack) -> list[Band]:
    """The bands of a PNG, JPEG or BMP, decoded whole, without names."""
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        with open_picture(path) as picture:
            if picture.mode in ("P", "PA", "1"):
                raise InputError("colours of a palette, no radar values")
        bands = decode_picture(path)

    def read(band: np.ndarray, area: Area) -> tuple[np.ndarray, np.ndarray]:
        values = band[area.slices]
        return values, np.full(values.shape, True) if nodata is None else values != nodata

    return [Band("", band.shape, band.dtype, partial(read, band)) for band in bands]
