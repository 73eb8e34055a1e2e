"""Small radar images in files."""

import json
import warnings
from pathlib import Path

import numpy as np
import rasterio


def write_tif(path: Path, bands: np.ndarray, names: list[str] | None = None, **options: object) -> Path:
    """A GeoTIFF of bands (C, H, W) or of one band (H, W)."""
    bands = bands[None] if bands.ndim == 2 else bands
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(path, "w", driver="GTiff", **{"dtype": bands.dtype, **shape, **options}) as file,
    ):
        file.write(bands)
        file.descriptions = names or [None] * len(bands)
    return path


def scene(height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    """Intensities of four looks: two areas 10 dB apart."""
    truth = np.where(np.arange(width) < width // 2, 0.05, 0.5) * np.ones((height, 1))
    return truth * np.random.default_rng(seed).gamma(4, 1 / 4, truth.shape)


def read_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
