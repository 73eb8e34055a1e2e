"""Reading radar pictures, and the named image operations that training and evaluation share."""

import json
import math
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from sarlang_sft.boxes import Frame
from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.image_files import PLAIN_MODES, TIFF_SUFFIXES, open_picture, open_tiff
from sarlang_sft.shards import in_shards, read_from_shards
from sarlang_sft.whole_output import CannotWriteError

Scale = Callable[[np.ndarray], np.ndarray]  # of one (H, W) band, as it is stored, to 0-255
DB_SHARE = 0.01  # of the values below zero: more are taken for dB
FIXED_DB = (-30.0, 5.0)
WHITE_SHARE = 0.99  # of the finite values above that: more are another unit
LARGEST_SIDE = 16_384  # pixels that an operation may make of a side
OPS_FILE = "image_ops.json"


def read_image(path: Path, scale: Scale | None = None) -> np.ndarray:
    """An image, a file or in a shard, as (H, W, 3) float32 of 0-255.

    8-bit files keep their values. Other types (16-bit, float) are stretched from their 1st-99th percentile, so that
    nothing is clipped; NaN counts as the lowest value, and of complex pixels the amplitude is taken. One band is
    repeated three times, two bands give (1, 2, 1).

    Args:
        scale: Instead of the percentiles, the same for every image, so that brightness means the same in all of them.

    Raises:
        UnreadableImageError: The file, or its shard, is missing or cut off, or it is no picture.
        CannotWriteError: Its shard cannot be written to the cache.
    """
    try:
        file = BytesIO(read_from_shards(path)) if in_shards(path) else path
        bands = _decode_tiff(file) if path.suffix.lower() in TIFF_SUFFIXES else decode_picture(file)
    except CannotWriteError:  # of a shard: the cache is full, the image is not broken
        raise
    except Exception as error:  # decoders meet broken files with errors of every kind
        raise UnreadableImageError(path, str(error)) from error
    if bands.dtype != np.uint8:
        try:
            bands = np.stack([(scale or _stretch)(band) for band in bands])
        except ValueError as error:
            raise UnreadableImageError(path, str(error)) from error
    order = {1: (0, 0, 0), 2: (0, 1, 0)}.get(len(bands), (0, 1, 2))
    return np.ascontiguousarray(bands[list(order)].transpose(1, 2, 0), dtype=np.float32)


def _decode_tiff(path: Path | BytesIO) -> np.ndarray:
    """The bands of a GeoTIFF as (C, H, W) in the file's own type."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), open_tiff(path) as file:
        return file.read()


def decode_picture(path: Path | BytesIO) -> np.ndarray:
    """The bands of a PNG, JPEG or BMP as (C, H, W) in the file's own type; palettes and alpha become RGB.

    Raises what Pillow raises.
    """
    with open_picture(path) as image:
        plain = image.mode in PLAIN_MODES
        return np.atleast_3d(np.asarray(image if plain else image.convert("RGB"))).transpose(2, 0, 1)


def _stretch(band: np.ndarray) -> np.ndarray:
    """Map the 1st-99th percentile of the finite values of one (H, W) band to 0-255."""
    band = _real(band)
    finite = band[np.isfinite(band)]
    if finite.size == 0:
        return np.zeros_like(band)
    low, high = np.percentile(finite, (1, 99))
    return np.clip((np.nan_to_num(band, nan=low) - low) / max(high - low, 1e-12), 0, 1) * 255


def _real(band: np.ndarray) -> np.ndarray:
    """As float32; of complex pixels the amplitude."""
    return (np.abs(band) if np.iscomplexobj(band) else band).astype(np.float32)


def fixed_scale(band: np.ndarray) -> np.ndarray:
    """One (H, W) band to 0-255 by its type alone, never by its own lowest and highest values.

    - Integers are amplitudes a (digital numbers) up to m: 255 ln(1 + a) / ln(1 + m), which shows dark scenes, too.
    - Floats with more than 1 % of the values below zero are dB, others intensities, of which dB are taken, and so
      are |z|^2 of complex ones; -30 to +5 dB become 0 to 255, which holds sigma nought of Sentinel-1 over land, sea
      and towns.

    NaN and values without a logarithm become 0.

    Raises:
        ValueError: Nearly all values are above the range, as amplitudes stored as floats are, or none is finite.
    """
    if np.iscomplexobj(band):
        band = np.abs(band) ** 2
    if np.issubdtype(band.dtype, np.integer):
        highest = np.iinfo(band.dtype).max
        return np.log1p(np.maximum(band, 0).astype(np.float32)) * (255 / math.log1p(highest))
    finite = band[np.isfinite(band)]
    if finite.size and np.mean(finite < 0) <= DB_SHARE:
        with np.errstate(divide="ignore", invalid="ignore"):
            band = 10 * np.log10(band)
    finite = band[np.isfinite(band)]
    if finite.size == 0 or np.mean(finite >= FIXED_DB[1]) > WHITE_SHARE:
        raise ValueError(
            f"its values are no dB or intensity that `fixed` shows ({FIXED_DB[0]:g} to {FIXED_DB[1]:g} dB); name "
            "their range in image_ops, as in `range:0:1000`"
        )
    return range_scale(*FIXED_DB)(band)


def range_scale(low: float, high: float) -> Scale:
    """Maps `low` to 0 and `high` to 255, in the file's unit (complex: amplitude); beyond is clipped, NaN becomes 0."""

    def scale(band: np.ndarray) -> np.ndarray:
        values = np.nan_to_num(_real(band), nan=low, posinf=high, neginf=low)
        return np.clip((values - low) / (high - low), 0, 1) * 255

    return scale


# Every operation maps (H, W, 3) float32 of 0-255 to the same; `argument` is the number after the colon.


def _log(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    return np.log1p(image) * (255 / np.log(256))


def _standardise(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    spread = argument or 3.0
    return np.clip((image - image.mean()) / (image.std() + 1e-6) / spread * 127.5 + 127.5, 0, 255)


def _grey(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)


def _crop(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    """The central square of `argument` pixels; smaller images are padded with their edge."""
    side = int(argument or 0)
    short = [max(0, side - length) for length in image.shape[:2]]
    padded = np.pad(image, [(gap // 2, gap - gap // 2) for gap in short] + [(0, 0)], mode="edge")
    top, left = ((length - side) // 2 for length in padded.shape[:2])
    return padded[top : top + side, left : left + side]


def _shift(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    reach = int(argument or 0)
    down, right = rng.integers(-reach, reach + 1, 2)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return padded[reach + down :, reach + right :][: image.shape[0], : image.shape[1]]


def _flip(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image


def _resize(image: np.ndarray, argument: float | None, rng: np.random.Generator) -> np.ndarray:
    side = int(argument or 0)
    return np.asarray(to_picture(image).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


ImageOp = Callable[[np.ndarray, float | None, np.random.Generator], np.ndarray]
OPS: dict[str, ImageOp] = {"log": _log, "standardise": _standardise, "grey": _grey, "crop": _crop, "resize": _resize}
AUGMENTING_OPS: dict[str, ImageOp] = {"shift": _shift, "flip": _flip}
SCALES = ("fixed", "range")  # come first
NEEDS_ARGUMENT = {"crop", "resize", "shift"}


def split_scale(names: list[str]) -> tuple[Scale | None, list[str]]:
    """How pixels of more than 8 bits are scaled, if the first operation says so (`fixed`, `range:LOW:HIGH`), and the
    others.

    Raises:
        InputError: The limits are no two rising numbers.
    """
    name, *limits = names[0].split(":") if names else [""]
    if name == "fixed" and not limits:
        return fixed_scale, names[1:]
    if name != "range":
        return None, names
    try:
        low, high = map(float, limits)
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise InputError(f"image_ops: `{names[0]}`: needs two rising numbers, as in `range:-25:0` (dB)")
    return range_scale(low, high), names[1:]


def parse_ops(names: list[str]) -> list[tuple[str, float | None]]:
    """`["log", "crop:64"]` to `[("log", None), ("crop", 64.0)]`, without what [`split_scale`] takes.

    Raises:
        InputError: A name is unknown, or a number is missing.
    """
    parsed = []
    for text in split_scale(names)[1]:
        name, _, argument = text.partition(":")
        if name in SCALES:
            raise InputError(f"image_ops: `{text}`: must come first, it says how files are read")
        known = {**OPS, **AUGMENTING_OPS}
        if name not in known:
            raise InputError(f"image_ops: unknown operation `{name}`; known are {', '.join([*SCALES, *known])}")
        try:
            value = float(argument) if argument else None
        except ValueError:
            raise InputError(f"image_ops: `{text}`: `{argument}` is no number") from None
        if value is not None and not math.isfinite(value):
            raise InputError(f"image_ops: `{text}`: `{argument}` is no finite number")
        if name in NEEDS_ARGUMENT and (value is None or not 1 <= value <= LARGEST_SIDE):
            raise InputError(f"image_ops: `{name}` needs a number of pixels up to {LARGEST_SIDE:,}, as in `{name}:64`")
        parsed.append((name, value))
    return parsed


def load_picture(path: Path, ops: list[str], rng: np.random.Generator | None = None) -> Image.Image:
    """Read an image and apply the named operations in order.

    Args:
        ops: As in `["log", "standardise", "crop:64", "shift:4"]`.
        rng: Given in training; without it the augmenting operations are left out.

    Returns:
        An 8-bit RGB picture for the backbone's processor.
    """
    return apply_ops(read_image(path, split_scale(ops)[0]), ops, rng)


def apply_ops(image: np.ndarray, ops: list[str], rng: np.random.Generator | None = None) -> Image.Image:
    """[`load_picture`] of an image, or a part of one, that is read already: (H, W, 3) float32 of 0-255."""
    for name, argument in parse_ops(ops):
        if name in OPS:
            image = OPS[name](image, argument, rng)
        elif rng is not None:
            image = AUGMENTING_OPS[name](image, argument, rng)
    return to_picture(image)


def frame_after(ops: list[str], width: int, height: int) -> Frame:
    """Where the pixels of an image of this size lie in what [`load_picture`] makes of it, augmentation left out."""
    frame = Frame.of(width, height)
    for name, argument in parse_ops(ops):
        side = int(argument or 0)
        if name == "crop":
            frame = frame.centred(side, side)
        elif name == "resize":
            frame = frame.resized(side, side)
    return frame


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Floats of 0-255 to uint8 of the same shape, rounded and clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def to_picture(image: np.ndarray) -> Image.Image:
    """(H, W, 3) float of 0-255 to an 8-bit picture, rounded and clipped."""
    return Image.fromarray(to_bytes(image))


def save_ops(folder: Path, ops: list[str]) -> None:
    """Keep the operations beside a model or adapter, so that evaluation sees what training saw."""
    (Path(folder) / OPS_FILE).write_text(json.dumps({"image_ops": ops}, indent=2) + "\n", encoding="utf-8")


def load_ops(folder: Path) -> list[str]:
    """The operations kept beside a model or adapter; none if the folder has no such file."""
    path = Path(folder) / OPS_FILE
    return json.loads(path.read_text(encoding="utf-8"))["image_ops"] if path.is_file() else []
