"""Image files by name and header, without decoding them: suffixes, safe paths, sizes."""

from pathlib import Path

import rasterio
from PIL import Image
from rasterio.errors import RasterioError

from sarlang_sft.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # in order of preference for one stem
TIFF_SUFFIXES = (".tif", ".tiff")
LARGEST_ASPECT = 200  # Qwen's processors refuse longer images


def path_inside(root: Path, relative: str) -> Path:
    """`root / relative`, or [`InputError`] if that leaves `root` (through `..`, an absolute path or a link)."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InputError(f"{relative}: leaves the image root {root}")
    return path


def header_size(root: Path, relative: str) -> tuple[int, int] | str:
    """(width, height) in pixels from the file's header alone, or the reason why the image cannot be used."""
    try:
        path = path_inside(root, relative)
    except InputError:
        return "path leaves the image root"
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with rasterio.open(path) as file:
                size = (file.width, file.height)
        else:
            with Image.open(path) as image:
                size = image.size
    except (OSError, ValueError, RasterioError, Image.DecompressionBombError):
        return "image unreadable"
    return size if max(size) <= LARGEST_ASPECT * min(size) else "image too elongated"
