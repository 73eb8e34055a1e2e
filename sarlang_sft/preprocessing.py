"""The published preprocessing of SARLANG-1M for one image: polarisation, speckle filter, logarithm, stretch, 8 bits.

arXiv 2504.03254 names the steps and no parameters; docs/preprocessing.md gives those chosen here. An image is read in
windows, each with as many pixels around it as the filter looks at, so that memory is bounded and every pixel comes out
as if the image had been read at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sarlang_sft.despeckle import FILTERS, LOG_LOOKS, REACH, count_looks, estimate_looks
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import DB_SHARE, to_bytes
from sarlang_sft.radar_files import Area, Band, RadarImage, open_bands
from sarlang_sft.whole_output import whole_file

DOMAINS = ("auto", "amplitude", "intensity", "db")
COMBINATIONS = {"mean": np.mean, "span": np.sum, "colour": None}
NO_POWER = "no valid pixel above zero"
WINDOW = 1024  # pixels; the side of what is filtered at a time
DB_BINS, DB_PER_BIN, DB_LOWEST = 153_600, 1 / 256, -300.0  # of the histogram that percentiles are taken from


@dataclass(frozen=True)
class Chain:
    """What is done to an image. Two images with equal chains are comparable, up to what is estimated from them."""

    bands: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={"help": "Polarisations (VV) or numbers from 1. auto: VV, else HH, else the first."},
    )
    combine: str = field(
        default="mean",
        metadata={"help": "Several bands to one image: mean or span (sum) of intensities, or colour (2 or 3 bands)."},
    )
    domain: str = field(
        default="auto",
        metadata={
            "help": "What pixel values are: amplitude, intensity or db. auto: integers are amplitude, floats with "
            "more than 1 %% below zero db, other floats intensity. Complex pixels always give the intensity |z|^2."
        },
    )
    nodata: float | None = field(
        default=None, metadata={"help": "Pixel value that is no data, such as 0 for borders. Default: the file's own."}
    )
    speckle_filter: str = field(default="refined_lee", metadata={"help": f"One of {', '.join(FILTERS)}."})
    looks: float | None = field(
        default=None, metadata={"help": "Equivalent number of looks. Default: estimated from each image."}
    )
    percentiles: list[float] = field(
        default_factory=lambda: [1.0, 99.0],
        metadata={"help": "Percentiles of the image's valid dB values that become 0 and 255."},
    )
    range_db: list[float] | None = field(
        default=None, metadata={"help": "dB values that become 0 and 255, for every image, instead of percentiles."}
    )
    tile: int | None = field(
        default=None, metadata={"help": "Side of square tiles in pixels. Default: one PNG for each image."}
    )
    overlap: int = field(default=0, metadata={"help": "Pixels that neighbouring tiles share."})

    def __post_init__(self) -> None:
        """Raise [`InputError`], which names the option, on values that cannot be."""
        for option, value, known in (
            ("combine", self.combine, COMBINATIONS),
            ("domain", self.domain, DOMAINS),
            ("speckle_filter", self.speckle_filter, FILTERS),
        ):
            if value not in known:
                raise InputError(f"--{option} {value}: is one of {', '.join(known)}")
        if not self.bands:
            raise InputError("--bands: name at least one band")
        if self.combine == "colour" and len(self.bands) not in (2, 3):
            raise InputError("--combine colour: needs two or three --bands, as in --bands VV VH")
        if self.looks is not None and not 0 < self.looks < np.inf:
            raise InputError(f"--looks {self.looks}: must be above zero")
        for option, pair, low, high in (
            ("percentiles", self.percentiles, 0, 100),
            ("range_db", self.range_db, -300, 300),
        ):
            if pair is not None and not (len(pair) == 2 and low <= pair[0] < pair[1] <= high):
                raise InputError(f"--{option}: needs two rising numbers from {low} to {high}")
        if self.nodata is not None and np.isnan(self.nodata):
            raise InputError("--nodata nan: NaN is never valid; leave the option out")
        if self.tile is not None and not 0 <= self.overlap < self.tile:
            raise InputError(f"--tile {self.tile} --overlap {self.overlap}: the overlap must be smaller than the tile")
        if self.tile is None and self.overlap:
            raise InputError("--overlap: needs --tile")


def preprocess(root: Path, image: RadarImage, chain: Chain, out: Path) -> dict[str, Any]:
    """Write an image's PNG, `<name>.png`, or its tiles, `<name>_y<top>_x<left>.png`, under `out`.

    Returns:
        `outputs` (paths relative to `out`), `width`, `height`, `bands`, `domain`, `looks` and `stretch_db` (one entry
        for each grey or colour layer; looks None if not needed), `valid` (share of the pixels).

    Raises:
        InputError: The image cannot be used; the message is the reason, without its name.
        CannotWriteError: The disk is full, or the folder not writable.
    """
    with open_bands(root, image, chain.bands, chain.nodata) as bands:
        height, width = bands[0].shape
        whole = Area(0, 0, height, width)
        if chain.tile is None and height * width > Image.MAX_IMAGE_PIXELS:
            raise InputError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels are too many for one PNG; give --tile")
        domain = _domain(bands, chain.domain)
        intensity = lru_cache(1)(lambda area: _intensity(bands, area, domain, chain.combine))
        layers = len(bands) if COMBINATIONS[chain.combine] is None else 1
        looks = _looks(intensity, whole, chain, layers)
        # everything is read once before anything is written: a torn file leaves no tiles
        despeckled = lru_cache(1)(lambda area: _despeckled_db(intensity, area, whole, chain.speckle_filter, looks))
        limits, valid = _stretch_limits(despeckled, whole, chain, layers)
        outputs = []
        for area in tile_areas(whole, chain.tile, chain.overlap):
            picture, any_valid = _picture(despeckled, area, limits)
            place = "" if chain.tile is None else f"_y{area.top:05d}_x{area.left:05d}"
            if any_valid:
                outputs.append(f"{image.name}{place}.png")
                _write_png(out / outputs[-1], picture)
    return {
        "outputs": outputs,
        "width": width,
        "height": height,
        "bands": [band.name for band in bands],
        "domain": domain,
        "looks": looks,
        "stretch_db": limits,
        "valid": valid,
    }


def tile_areas(whole: Area, tile: int | None, overlap: int) -> list[Area]:
    """The areas of the tiles in reading order: all of `tile` pixels a side, the last ones moved inwards to fit.

    An image smaller than a tile is one smaller tile; without `tile` the whole image is the only area.
    """
    if tile is None:
        return [whole]

    def starts(length: int) -> list[int]:
        last = max(length - tile, 0)
        return [*range(0, last, tile - overlap), last]

    return [
        Area(top, left, min(top + tile, whole.bottom), min(left + tile, whole.right))
        for top in starts(whole.bottom)
        for left in starts(whole.right)
    ]


def windows(area: Area) -> Iterator[Area]:
    """Parts of at most `WINDOW` pixels a side that cover an area."""
    for top in range(area.top, area.bottom, WINDOW):
        for left in range(area.left, area.right, WINDOW):
            yield Area(top, left, min(top + WINDOW, area.bottom), min(left + WINDOW, area.right))


def _grown(area: Area, whole: Area) -> Area:
    top, left = max(area.top - REACH, 0), max(area.left - REACH, 0)
    return Area(top, left, min(area.bottom + REACH, whole.bottom), min(area.right + REACH, whole.right))


def _domain(bands: list[Band], domain: str) -> str:
    """What the pixel values are; `auto` is decided by the type of the values and by how many are below zero."""
    kinds = {band.dtype.kind for band in bands}
    if "c" in kinds:
        return "complex"
    if domain != "auto":
        return domain
    if kinds == {"u"}:
        return "amplitude"
    valid_pixels = below_zero = 0
    for area in windows(Area(0, 0, *bands[0].shape)):
        for values, valid in (band.read(area) for band in bands):
            if (values[valid] < DB_LOWEST).any():
                raise InputError(
                    f"values below {DB_LOWEST:.0f} are no dB; give --domain intensity, or --nodata for them"
                )
            valid_pixels += int(valid.sum())
            below_zero += int((values[valid] < 0).sum())
    if "f" in kinds:  # subtracted noise leaves a few intensities below zero
        return "db" if below_zero > DB_SHARE * valid_pixels else "intensity"
    if below_zero:
        raise InputError("integers below zero; give --domain db or amplitude")
    return "amplitude"


def to_intensity(values: np.ndarray, domain: str) -> np.ndarray:
    """Linear power, float64, of pixel values of a domain (`complex` for I + jQ); below zero counts as zero."""
    if domain == "complex":
        return values.real.astype(np.float64) ** 2 + values.imag.astype(np.float64) ** 2
    values = values.astype(np.float64)
    if domain == "db":
        return 10 ** (values / 10)
    return np.maximum(values, 0) ** (2 if domain == "amplitude" else 1)


def _intensity(bands: list[Band], area: Area, domain: str, combine: str) -> tuple[np.ndarray, np.ndarray]:
    """Intensities (layers, H, W), and which pixels are valid in all bands (H, W)."""
    values, valid = zip(*(band.read(area) for band in bands), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        layers = np.stack([to_intensity(one, domain) for one in values])
    everywhere = np.logical_and.reduce([*valid, np.isfinite(layers).all(axis=0)])
    layers = np.where(everywhere, layers, 0.0)
    unite = COMBINATIONS[combine]
    return (unite(layers, axis=0, keepdims=True) if unite else layers), everywhere


Read = Callable[[Area], tuple[np.ndarray, np.ndarray]]


def _looks(intensity: Read, whole: Area, chain: Chain, layers: int) -> list[float | None]:
    """The looks of every layer, if the filter needs them."""
    if chain.looks is not None or chain.speckle_filter != "refined_lee":
        return [chain.looks] * layers
    counts, any_power = np.zeros((layers, len(LOG_LOOKS) - 1), np.int64), False
    for window in windows(whole):
        # so far over the end that every 7 x 7 pixels of the image are counted, once
        bottom, right = min(window.bottom + 2 * REACH, whole.bottom), min(window.right + 2 * REACH, whole.right)
        values, valid = intensity(Area(window.top, window.left, bottom, right))
        counts += [count_looks(layer, valid) for layer in values]
        any_power |= bool((values > 0).any())
    if not any_power:
        raise InputError(NO_POWER)
    looks = [estimate_looks(of_layer) for of_layer in counts]
    if None in looks:
        raise InputError("no area to estimate the looks from; give --looks")
    return looks


def _despeckled_db(
    intensity: Read, area: Area, whole: Area, speckle_filter: str, looks: list[float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Filtered dB values (layers, H, W), -inf where there is no power, and which pixels are valid (H, W)."""
    grown = _grown(area, whole)
    values, valid = intensity(grown)
    inner = Area(area.top - grown.top, area.left - grown.left, area.bottom - grown.top, area.right - grown.left).slices
    filtered = [FILTERS[speckle_filter](layer, valid, of_layer) for layer, of_layer in zip(values, looks, strict=True)]
    with np.errstate(divide="ignore"):
        return np.stack([10 * np.log10(np.ascontiguousarray(layer[inner])) for layer in filtered]), valid[inner]


def _stretch_limits(despeckled: Read, whole: Area, chain: Chain, layers: int) -> tuple[list[list[float]], float]:
    """The dB values of every layer that become 0 and 255, and the share of valid pixels.

    Percentiles are those of all valid pixels with any power, to 1/256 dB.
    """
    counts, valid_pixels = np.zeros((layers, DB_BINS), np.int64), 0
    for area in windows(whole):
        values, valid = despeckled(area)
        counts += [np.bincount(_bin(layer[valid & (layer > -np.inf)]), minlength=DB_BINS) for layer in values]
        valid_pixels += int(valid.sum())
    if not counts.any(axis=1).all():
        raise InputError(NO_POWER)
    limits = [chain.range_db or [_percentile(layer, share) for share in chain.percentiles] for layer in counts]
    return limits, valid_pixels / (whole.bottom * whole.right)


def _bin(decibel: np.ndarray) -> np.ndarray:
    return np.clip((decibel - DB_LOWEST) / DB_PER_BIN, 0, DB_BINS - 1).astype(np.int64)


def _percentile(counts: np.ndarray, share: float) -> float:
    rank = share / 100 * (counts.sum() - 1)
    return float((np.searchsorted(np.cumsum(counts), rank, side="right") + 0.5) * DB_PER_BIN + DB_LOWEST)


def _picture(despeckled: Read, area: Area, limits: list[list[float]]) -> tuple[np.ndarray, bool]:
    """The 8-bit picture (H, W) or (H, W, 3) of an area, 0 where not valid, and whether any pixel is valid."""
    picture = np.zeros((len(limits), area.bottom - area.top, area.right - area.left), np.uint8)
    any_valid = False
    for window in windows(area):
        values, valid = despeckled(window)
        rows, columns = Area(
            window.top - area.top, window.left - area.left, window.bottom - area.top, window.right - area.left
        ).slices
        for layer, decibel, (low, high) in zip(picture, values, limits, strict=True):
            layer[rows, columns] = np.where(valid, to_bytes((decibel - low) * (255 / max(high - low, DB_PER_BIN))), 0)
        any_valid |= bool(valid.any())
    order = {1: 0, 2: [0, 1, 0], 3: [0, 1, 2]}[len(limits)]
    return np.moveaxis(picture[order], 0, -1) if len(limits) > 1 else picture[0], any_valid


def _write_png(path: Path, picture: np.ndarray) -> None:
    with whole_file(path) as file:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
