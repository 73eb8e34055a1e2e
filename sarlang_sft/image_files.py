"""Image files by name and header, without decoding them: suffixes, safe paths, sizes."""

import os
import warnings
from io import BytesIO
from pathlib import Path

import rasterio
from PIL import Image
from rasterio.errors import RasterioError

from sarlang_sft.errors import InputError
from sarlang_sft.records import SHARD_INDEX

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # in order of preference for one stem
TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")  # Pillow's others may start programs (EPS)
PLAIN_MODES = ("L", "RGB", "I", "I;16", "I;16B", "F")  # Pillow's pixels as they are stored; others become RGB
LARGEST_ASPECT = 200  # Qwen's processors refuse longer images
LARGEST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses to decode


def path_inside(root: Path, relative: str) -> Path:
    """`root / relative`, or [`InputError`] if that leaves `root` (through `..`, an absolute path or a link)."""
    path = Path(os.path.realpath(root / relative))  # which takes links in a circle, too
    if not path.is_relative_to(os.path.realpath(root)) or SHARD_INDEX in Path(relative).parts:
        raise InputError(f"{relative}: leaves the image root {root}")
    return path


def open_tiff(path: Path | BytesIO) -> rasterio.DatasetReader:
    """A GeoTIFF by itself, or the bytes of one.

    By content alone GDAL would also open virtual files, and beside a GeoTIFF masks and metadata of any kind (`.msk`,
    `.aux.xml`): both may refer to files out of the root, or on the network.
    """
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        return rasterio.open(path, driver="GTiff")


def open_picture(path: Path | BytesIO) -> Image.Image:
    """A picture of `PICTURE_FORMATS`, or the bytes of one, not yet decoded."""
    return Image.open(path, formats=PICTURE_FORMATS)


def header_size(root: Path, relative: str) -> tuple[int, int] | str:
    """(width, height) in pixels from the file's header alone, or the reason why the image cannot be used."""
    try:
        path = path_inside(root, relative)
    except InputError:
        return "path leaves the image root"
    try:
        with warnings.catch_warnings(action="ignore"):  # of files without a geographic reference, and large ones
            if path.suffix.lower() in TIFF_SUFFIXES:
                with open_tiff(path) as file:
                    size = (file.width, file.height)
            else:
                with open_picture(path) as image:
                    size = image.size
    except Image.DecompressionBombError:
        return "image too large"
    except (OSError, ValueError, RasterioError):
        return "image unreadable"
    if size[0] * size[1] > LARGEST_PIXELS:
        return "image too large"
    return size if max(size) <= LARGEST_ASPECT * min(size) else "image too elongated"
