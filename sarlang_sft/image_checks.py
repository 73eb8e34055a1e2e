"""What an image file is, decoded in full: its size, type and pixels, or the reason why it cannot be used."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import PLAIN_MODES, TIFF_SUFFIXES, open_picture, open_tiff, path_inside
from sarlang_sft.processes import in_processes

FILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What decoding says about one image.

    Attributes:
        problem: (kind of finding, detail) if the image cannot be used; the rest is empty then.
        width, height: In pixels.
        pixels: Type of the stored pixels: `uint8`, `uint16`, `float32` ...
        converted: What becomes RGB when it is read: `palette`, `alpha`, `5 bands` ...; empty for grey and RGB.
        blank: All finite pixels are equal, or there is none.
        missing: Share (0-1) of NaN and infinite values.
        digest: Hash of the decoded pixels; lossless files of one picture agree in whatever format (PNG, BMP, TIFF;
            grey, or RGB with equal bands).
    """

    problem: tuple[str, str] | None = None
    width: int = 0
    height: int = 0
    pixels: str = ""
    converted: str = ""
    blank: bool = False
    missing: float = 0.0
    digest: bytes = b""


@dataclass(frozen=True)
class _Decoded:
    """`bands` (C, H, W) as they are stored, of the type `pixels`."""

    bands: np.ndarray
    pixels: str
    converted: str


class _TooLarge(Exception):
    """An image whose header declares more than may be decoded."""


def examine_images(root: Path, names: list[str], max_mb: int, workers: int) -> Iterator[ImageFacts]:
    """Examine images in the order of their names, several at a time.

    Args:
        names: Paths relative to `root`.
        max_mb: Images that decode to more are left alone; every process needs about three times that at most.
        workers: Processes.

    Raises:
        InputError: A process was killed from outside, as systems do when memory runs out.
    """
    examine, remedy = partial(examine_image, root, max_mb), "take fewer --workers, or a lower --max_image_mb"
    yield from in_processes(examine, names, workers, FILES_AT_ONCE, "images", remedy)


def examine_image(root: Path, max_mb: int, name: str) -> ImageFacts:
    """Decode one image; a broken or foreign file is an answer, never an exception."""
    try:
        path = path_inside(root, name)
        if not path.is_file():
            return ImageFacts(("missing_image", "no such file"))
        if path.stat().st_size == 0:
            return ImageFacts(("unreadable_image", "the file is empty"))
    except InputError:
        return ImageFacts(("outside_root", "its path leaves the image root"))
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null in it, a circle of links
        return ImageFacts(("missing_image", str(error)))
    decode = _decode_tiff if path.suffix.lower() in TIFF_SUFFIXES else _decode_picture
    try:
        decoded = decode(path, max_mb * 2**20)
    except (_TooLarge, Image.DecompressionBombError) as error:
        return ImageFacts(("huge_image", str(error)))
    except Exception as error:  # decoders meet broken files with errors of every kind
        return ImageFacts(("unreadable_image", str(error).replace(str(path), path.name) or type(error).__name__))
    return _facts(decoded)


def _check_bytes(width: int, height: int, bytes_per_pixel: int, most: int) -> None:
    if width * height * bytes_per_pixel > most:
        raise _TooLarge(f"{width} x {height} pixels of {bytes_per_pixel} bytes, more than {most >> 20} MB")


def _decode_tiff(path: Path, most: int) -> _Decoded:
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), open_tiff(path) as file:
        size = sum(np.dtype(kind.replace("complex_int16", "complex64")).itemsize for kind in file.dtypes)
        for height, width in {file.shape, *file.block_shapes}:  # the blocks of a broken file may be larger than it is
            _check_bytes(width, height, size, most)
        converted = {ColorInterp.palette: "palette, as its numbers", ColorInterp.alpha: "alpha"}
        names = [name for kind, name in converted.items() if kind in file.colorinterp]
        if file.count > 3 and not names:
            names = [f"{file.count} bands"]
        return _Decoded(file.read(), file.dtypes[0], ", ".join(names))


def _decode_picture(path: Path, most: int) -> _Decoded:
    with (
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
        open_picture(path) as image,
    ):
        grey = {"I;16": 2, "I;16B": 2, "I": 4, "F": 4}
        _check_bytes(*image.size, grey.get(image.mode, len(image.getbands())), most)
        converted = {"P": "palette", "LA": "alpha", "RGBA": "alpha", "PA": "palette, alpha", "1": "1 bit"}
        plain = image.mode in PLAIN_MODES
        cut = image.mode not in grey and image.format == "PNG" and "16B" in str(image.tile)
        bands = np.atleast_3d(np.asarray(image if plain else image.convert("RGB"))).transpose(2, 0, 1)
        name = "" if plain else converted.get(image.mode, image.mode)
        return _Decoded(bands, "uint16" if cut else str(bands.dtype), "the upper 8 bits of colour" if cut else name)


def _facts(decoded: _Decoded) -> ImageFacts:
    bands = decoded.bands
    finite = [np.isfinite(band) for band in bands] if bands.dtype.kind in "fc" else []
    missing = 1 - float(np.mean([mask.mean() for mask in finite])) if finite else 0.0
    present = [band[mask] for band, mask in zip(bands, finite, strict=True)] if missing else bands
    blank = all(values.size == 0 or (values == values.flat[0]).all() for values in present)
    grey = len(bands) == 3 and np.array_equal(bands[0], bands[1]) and np.array_equal(bands[0], bands[2])
    kept = bands[:1] if grey else bands
    digest = hashlib.blake2b(f"{kept.shape} {kept.dtype}".encode(), digest_size=16)
    for band in kept:
        digest.update(np.ascontiguousarray(band))
    height, width = bands.shape[1:]
    return ImageFacts(None, width, height, decoded.pixels, decoded.converted, bool(blank), missing, digest.digest())
