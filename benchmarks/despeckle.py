"""Speckle filters: error to a known truth, looks and edges on real images, time beside plain loops, memory.

    python benchmarks/despeckle.py                                    # simulated speckle, and time
    python benchmarks/despeckle.py --real_data DIR --huge 20000 --out benchmarks/results/cpu_despeckle.json

DIR holds `bigearthnet_s1/` (Sentinel-1 patches, float dB, VV and VH) and `s1s2_pairs/sar/` (8-bit Sentinel-1 tiles).
`--huge` writes a float GeoTIFF of that side and preprocesses it into tiles.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import scipy
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import plain_despeckle
import setting

from sarlang_sft.despeckle import FILTERS, count_looks, enl, estimate_looks
from sarlang_sft.preprocessing import to_intensity
from sarlang_sft.radar_files import Area, find_images, open_bands

ROOT = Path(__file__).parent.parent
BLOCK = 15  # pixels; side of the areas whose looks are measured
# Rows, columns and dB of the simulated scene's rectangles.
AREAS = (
    (40, 180, 40, 220, 10),
    (80, 130, 90, 170, -6),
    (250, 470, 40, 45, 8),
    (250, 470, 70, 79, 8),
    (250, 470, 110, 125, 8),
)


def decibel(intensity: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(intensity, 1e-12))


def truth_with_edges(side: int = 512) -> np.ndarray:
    """Constant areas 3 to 10 dB apart, with straight, slanted and round edges, and strips of 5 to 15 pixels."""
    y, x = np.mgrid[:side, :side] * (512 / side)
    level = np.zeros((side, side))
    level[y + 0.6 * x > 560] = 3
    for top, bottom, left, right, decibels in AREAS:
        level[(y >= top) & (y < bottom) & (x >= left) & (x < right)] = decibels
    level[np.hypot(y - 360, x - 380) < 90] = 9
    return 10 ** (level / 10)


def edge_points(reference: np.ndarray, share: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (2, N) and unit normals (2, N) of the strongest edges of an image in dB: its steepest `share`."""
    gradient = np.stack([gaussian_filter(reference, sigma, order=order) for order in ((1, 0), (0, 1))])
    steepness = np.hypot(*gradient)
    steepness[:8] = steepness[-8:] = steepness[:, :8] = steepness[:, -8:] = 0
    places = np.array(np.nonzero(steepness >= np.quantile(steepness, 1 - share)))
    return places, gradient[:, *places] / steepness[*places]


def slope(image: np.ndarray, points: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean rise in dB across edges, from one pixel before to one behind; speckle averages out of it."""
    places, normals = points
    ahead, behind = (map_coordinates(image, places + side * normals, order=1) for side in (1, -1))
    return float(np.mean(ahead - behind))


def simulated(looks: float, seed: int = 0) -> list[dict[str, Any]]:
    """Every filter's error to the truth."""
    truth = truth_with_edges()
    image = truth * np.random.default_rng(seed).gamma(looks, 1 / looks, truth.shape)
    valid = np.full(truth.shape, True)
    edge = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        edge |= (np.diff(truth, axis=axis, append=np.take(truth, [-1], axis)) != 0) | (
            np.diff(truth, axis=axis, prepend=np.take(truth, [0], axis)) != 0
        )
    distance = distance_transform_edt(~edge)
    flat, near = distance > 6, distance <= 2
    points = edge_points(decibel(truth), float(edge.mean()), 1.0)
    estimated = estimate_looks(count_looks(image, valid))
    rows = []
    for name, filter_ in FILTERS.items():
        filtered = filter_(image, valid, estimated)
        error = decibel(filtered) - decibel(truth)
        rows.append(
            {
                "filter": name,
                "looks": looks,
                "looks_estimated": estimated,
                "rmse_db": float(np.sqrt(np.mean(error**2))),
                "rmse_db_flat": float(np.sqrt(np.mean(error[flat] ** 2))),
                "rmse_db_near_edges": float(np.sqrt(np.mean(error[near] ** 2))),
                "enl_flat": enl((filtered / truth)[flat]),
                "edge_slope_kept": slope(decibel(filtered), points) / slope(decibel(truth), points),
                "mean_flat": float(np.mean((filtered / truth)[flat])),
            }
        )
    return rows


def blocks(image: np.ndarray) -> np.ndarray:
    """(N, BLOCK * BLOCK) pixels of the squares that an image is cut into."""
    rows, columns = (length // BLOCK for length in image.shape)
    cut = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return cut.transpose(0, 2, 1, 3).reshape(rows * columns, -1)


def read_intensities(root: Path, band: str, domain: str) -> list[np.ndarray]:
    """One band of every image under a folder."""
    images = []
    for image in find_images(root)[0]:
        with open_bands(root, image, [band], None) as (opened,):
            images.append(to_intensity(opened.read(Area(0, 0, *opened.shape))[0], domain))
    return images


def real(name: str, images: list[np.ndarray]) -> list[dict[str, Any]]:
    """Looks of the flattest tenth of the blocks, and the rise across the steepest 2 % of the pixels."""
    looks = [estimate_looks(count_looks(image, np.full(image.shape, True))) for image in images]
    before = np.concatenate([blocks(image) for image in images])
    local = before.mean(axis=1) ** 2 / np.maximum(before.var(axis=1), 1e-12)
    flat = local >= np.quantile(local, 0.9)
    rows = []
    for filter_name, filter_ in FILTERS.items():
        filtered = [
            filter_(image, np.full(image.shape, True), of_image) for image, of_image in zip(images, looks, strict=True)
        ]
        after = np.concatenate([blocks(image) for image in filtered])[flat]
        slopes = np.zeros(2)
        for image, of_image in zip(images, filtered, strict=True):
            points = edge_points(decibel(image), 0.02, 3.0)
            slopes += slope(decibel(of_image), points), slope(decibel(image), points)
        rows.append(
            {
                "data": name,
                "filter": filter_name,
                "images": len(images),
                "looks_estimated": float(np.median(looks)),
                "enl_flat": float(np.median([enl(block) for block in after])),
                "edge_slope_kept": float(slopes[0] / slopes[1]),
                "mean_kept": float(np.mean([b.mean() / a.mean() for a, b in zip(images, filtered, strict=True)])),
            }
        )
    return rows


def spread_by_level(amplitudes: list[np.ndarray]) -> list[dict[str, float]]:
    """Standard deviation of flat blocks by mean grey level: that of speckle grows with it in amplitude, not in dB."""
    pixels = np.concatenate([blocks(image) for image in amplitudes])
    mean, deviation = pixels.mean(axis=1), pixels.std(axis=1)
    limits = np.quantile(mean, np.linspace(0, 0.9, 6))
    rows = []
    for low, high in pairwise(limits):
        inside = (mean >= low) & (mean < high)
        flat = inside & (deviation / mean <= np.quantile((deviation / mean)[inside], 0.1))
        rows.append({"grey_level": float(mean[flat].mean()), "deviation": float(deviation[flat].mean())})
    return rows


def best_time(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the quickest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def timing(side: int = 1024, small: int = 96) -> list[dict[str, Any]]:
    """CPU seconds for a tile, and how many times longer plain loops take per pixel."""
    image = truth_with_edges(side) * np.random.default_rng(0).gamma(4, 1 / 4, (side, side))
    valid = np.full(image.shape, True)
    part = np.s_[:small, :small]
    rows = []
    for name in ("refined_lee", "boxcar"):
        seconds = best_time(lambda name=name: FILTERS[name](image, valid, 4.0), 5)
        plain = best_time(lambda name=name: getattr(plain_despeckle, name)(image[part], valid[part], 4.0), 1)
        ratio = plain / small**2 / (seconds / side**2)
        rows.append({"filter": name, "side": side, "cpu_seconds": seconds, "plain_loop_over_ours": ratio})
    return rows


# A small process between, since a program starts with the peak memory of the process that it was forked from.
MEASURED = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_maxrss, used.ru_utime + used.ru_stime]))
"""


def huge(side: int) -> dict[str, Any]:
    """CPU time and memory of preprocessing one large file, stored in lines as many products are, into tiles of 512."""
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch) / "root", Path(scratch) / "out"
        root.mkdir()
        lines = truth_with_edges(1024)[:, np.arange(side) % 1024]
        lines *= np.random.default_rng(0).gamma(4, 1 / 4, lines.shape)
        shape = {"height": side, "width": side, "count": 1, "dtype": "float32"}
        with rasterio.open(root / "scene.tif", "w", driver="GTiff", **shape) as file:
            for top in range(0, side, len(lines)):
                rows = min(len(lines), side - top)
                file.write(lines[:rows].astype(np.float32), 1, window=Window(0, top, side, rows))
        command = [sys.executable, str(ROOT / "data_prep/preprocess_sar.py"), "--root", str(root), "--out", str(out)]
        measured = [sys.executable, "-c", MEASURED, *command, "--tile", "512", "--workers", "1"]
        output = subprocess.run(measured, check=True, stdout=subprocess.PIPE, text=True).stdout
        tiles = sum(1 for _ in out.rglob("*.png"))
    peak, seconds = json.loads(output.splitlines()[-1])
    return {"side": side, "cpu_seconds": seconds, "tiles": tiles, "peak_memory_bytes_of_largest_process": peak * 1024}


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in row.items())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real_data", type=Path, help="folder with bigearthnet_s1/ and s1s2_pairs/")
    parser.add_argument("--huge", type=int, help="side in pixels of a file to preprocess, for time and memory")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    packages = {"numpy": np.__version__, "scipy": scipy.__version__, "rasterio": rasterio.__version__}
    processor = setting.hardware().partition(" (")[2].partition(")")[0]
    result: dict[str, Any] = {
        "hardware": f"1 CPU core ({processor}), float64",
        "versions": {"python": setting.versions()["python"], **packages, "gdal": rasterio.__gdal_version__},
        "simulated": [row for looks in (1, 4) for row in simulated(looks)],
        "time": timing(),
    }
    show([*result["simulated"], *result["time"]])
    if options.real_data:
        patches, tiles = options.real_data / "bigearthnet_s1", options.real_data / "s1s2_pairs/sar"
        amplitudes = read_intensities(tiles, "auto", "amplitude")
        result["real"] = [
            *real("bigearthnet_s1 VV", read_intensities(patches, "VV", "db")),
            *real("bigearthnet_s1 VH", read_intensities(patches, "VH", "db")),
            *real("s1s2_pairs", amplitudes),
        ]
        result["s1s2_pairs_spread"] = spread_by_level([np.sqrt(image) for image in amplitudes])
        show([*result["real"], *result["s1s2_pairs_spread"]])
    if options.huge:
        result["huge"] = huge(options.huge)
        show([result["huge"]])
    setting.write_result(options.out, result)


if __name__ == "__main__":
    main()
