import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import ROOT, run_script
from PIL import Image

from sarlang_sft import preprocessing
from sarlang_sft.errors import InputError
from sarlang_sft.preprocessing import Area, Chain, preprocess, tile_areas
from sarlang_sft.preprocessing_run import preprocess_folder
from sarlang_sft.radar_files import RadarImage, find_images

SCRIPT = "data_prep/preprocess_sar.py"


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


def run_one(file: Path, chain: Chain, out: Path) -> tuple[dict, np.ndarray]:
    """What is recorded of one file, and its picture."""
    info = preprocess(file.parent, RadarImage("picture", (file.name,)), chain, out)
    return info, np.asarray(Image.open(out / "picture.png"))


def outputs(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def rejections(out: Path) -> dict[str, str]:
    return {row["image"]: row["reason"] for row in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}


def test_one_scene_in_every_domain_gives_one_picture(tmp_path: Path) -> None:
    intensity = scene()
    phase = np.exp(1j * np.random.default_rng(1).uniform(0, 7, intensity.shape))
    amplitude = np.sqrt(intensity)
    files = {
        "intensity": (intensity.astype(np.float32), "auto", "intensity", {}),
        "decibel": ((10 * np.log10(intensity)).astype(np.float32), "auto", "db", {}),
        "amplitude": (np.rint(amplitude * 9000).astype(np.uint16), "auto", "amplitude", {}),
        "amplitude_float": (amplitude.astype(np.float32), "amplitude", "amplitude", {}),
        "complex": ((amplitude * phase).astype(np.complex64), "auto", "complex", {}),
        "complex_int": (
            (amplitude * phase * 9000).astype(np.complex64),
            "auto",
            "complex",
            {"dtype": "complex_int16"},
        ),
    }
    pictures = {}
    for name, (values, option, domain, options) in files.items():
        file = write_tif(tmp_path / f"{name}.tif", values, **options)
        info, pictures[name] = run_one(file, Chain(domain=option), tmp_path / name)
        assert info["domain"] == domain and info["looks"][0] == pytest.approx(4, rel=0.2), name
        assert info["stretch_db"][0][1] - info["stretch_db"][0][0] == pytest.approx(10, abs=4)
    for name, picture in pictures.items():
        assert picture.dtype == np.uint8 and picture.shape == (60, 70)
        assert np.quantile(np.abs(picture.astype(int) - pictures["intensity"]), 0.99) <= 2, name
    assert (pictures["intensity"] == 0).mean() == pytest.approx(0.01, abs=0.005)
    assert (pictures["intensity"] == 255).mean() == pytest.approx(0.01, abs=0.005)


def test_eight_bits_in_any_format_are_amplitude(tmp_path: Path) -> None:
    values = np.clip(np.sqrt(scene()) * 200, 0, 255).astype(np.uint8)
    write_tif(tmp_path / "x.tif", values)
    for name in ("x.png", "x.bmp"):
        Image.fromarray(values).save(tmp_path / name)
    results = [run_one(tmp_path / name, Chain(), tmp_path / name[-3:]) for name in ("x.tif", "x.png", "x.bmp")]
    assert all(info["domain"] == "amplitude" for info, _ in results)
    assert all(np.array_equal(picture, results[0][1]) for _, picture in results)


def test_bands_are_found_by_name_and_combined(tmp_path: Path) -> None:
    vv, vh = scene(seed=1).astype(np.float32), (scene(seed=2) / 5).astype(np.float32)
    both = write_tif(tmp_path / "both.tif", np.stack([vh, vv]), ["Sigma0_VH", "Sigma0_VV"])
    plain = Chain(speckle_filter="none", range_db=[-30, 5])

    def grey(intensity: np.ndarray) -> np.ndarray:
        return np.clip(np.rint((10 * np.log10(intensity.astype(float)) + 30) / 35 * 255), 0, 255).astype(np.uint8)

    expected = {
        ("auto",): grey(vv),
        ("vh",): grey(vh),
        ("1",): grey(vh),
        ("VV", "VH", "mean"): grey((vv.astype(float) + vh) / 2),
        ("VV", "VH", "span"): grey(vv.astype(float) + vh),
        ("VV", "VH", "colour"): np.stack([grey(vv), grey(vh), grey(vv)], axis=2),
    }
    for number, (words, picture) in enumerate(expected.items()):
        bands, combine = [word for word in words if len(word) < 4 or word == "auto"], words[-1]
        chain = replace(plain, bands=[*bands], combine=combine if combine in preprocessing.COMBINATIONS else "mean")
        info, found = run_one(both, chain, tmp_path / str(number))
        assert np.array_equal(found, picture), words
        assert info["bands"] == [{"auto": "VV", "1": "VH"}.get(band, band.upper()) for band in bands]
    with pytest.raises(InputError, match="no band HV"):
        run_one(both, Chain(bands=["HV"]), tmp_path / "hv")


def test_polarisations_in_files_of_their_own_become_one_image(tmp_path: Path) -> None:
    for name in (
        "a/x_VV.tif",
        "a/x_vh.TIF",
        "b/x-HH.tif",
        "x_VV_2020.tif",
        "c/y.tif",
        "c/y_VV.tif",
        "d/z.png",
        "d/z.tif",
    ):
        write_tif(tmp_path / name, scene().astype(np.float32))
    (tmp_path / "notes.txt").write_text("no image")
    write_tif(tmp_path / "e/w_VH.tif", scene().astype(np.float32))
    (tmp_path / "e/w_VV.tif").touch()
    images, rejected, ignored = find_images(tmp_path)
    bad = {"e/w_VV.tif": "empty file", "e/w_VH.tif": "another of its polarisations is bad"}
    assert {file: rejected.pop(file) for file in bad} == bad, "no picture of the wrong polarisation"
    assert [(image.name, image.files) for image in images] == [
        ("a/x", ("a/x_VV.tif", "a/x_vh.TIF")),
        ("b/x", ("b/x-HH.tif",)),
        ("x_VV_2020", ("x_VV_2020.tif",)),
    ]
    assert rejected == dict.fromkeys(
        ["c/y.tif", "c/y_VV.tif", "d/z.png", "d/z.tif"], "several files would become one image"
    )
    assert ignored == {".txt": 1}
    info = preprocess(tmp_path, images[0], Chain(bands=["VH", "VV"], combine="colour"), tmp_path / "out")
    assert info["bands"] == ["VH", "VV"] and len(info["looks"]) == len(info["stretch_db"]) == 2
    write_tif(tmp_path / "a/x_VV.tif", scene(20).astype(np.float32))
    with pytest.raises(InputError, match="different size"):
        preprocess(tmp_path, images[0], Chain(bands=["VH", "VV"]), tmp_path / "out")


@pytest.mark.parametrize("speckle_filter", ["refined_lee", "boxcar", "none"])
def test_windows_and_tiles_equal_the_whole_image(
    speckle_filter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (10 * np.log10(scene(150, 131))).astype(np.float32)
    values[30:50, 60:] = np.nan
    values[:, :9] = -99
    file = write_tif(tmp_path / "x.tif", values, nodata=-99)
    chain = Chain(speckle_filter=speckle_filter)
    info, whole = run_one(file, chain, tmp_path / "whole")
    for side in (7, 40, 64, 149):
        monkeypatch.setattr(preprocessing, "WINDOW", side)
        info_of_windows, windowed = run_one(file, chain, tmp_path / str(side))
        assert info_of_windows == info and np.array_equal(windowed, whole), side
        assert (tmp_path / str(side) / "picture.png").read_bytes() == (tmp_path / "whole/picture.png").read_bytes()
    tiled = preprocess(tmp_path, RadarImage("t", ("x.tif",)), replace(chain, tile=64, overlap=16), tmp_path / "tiles")
    assert tiled["outputs"][0] == "t_y00000_x00000.png" and tiled["outputs"][-1] == "t_y00086_x00067.png"
    for name in tiled["outputs"]:
        top, left = int(name[3:8]), int(name[10:15])
        tile = np.asarray(Image.open(tmp_path / "tiles" / name))
        assert np.array_equal(tile, whole[top : top + 64, left : left + 64]) and tile.shape == (64, 64)


def test_tiles_cover_the_image_and_none_is_empty(tmp_path: Path) -> None:
    assert tile_areas(Area(0, 0, 30, 20), 64, 0) == [Area(0, 0, 30, 20)]
    for tile, overlap in ((64, 0), (50, 49), (33, 7)):
        seen = np.zeros((140, 64), int)
        for area in tile_areas(Area(0, 0, 140, 64), tile, overlap):
            seen[area.slices] += 1
            assert (area.bottom - area.top, area.right - area.left) == (tile, tile)
        assert seen.min() == 1 or overlap > tile // 2
        assert seen.min() > 0
    values = scene(64, 128).astype(np.float32)
    values[:, :64] = 0
    write_tif(tmp_path / "x.tif", values)
    info = preprocess(tmp_path, RadarImage("x", ("x.tif",)), Chain(nodata=0, tile=64), tmp_path / "out")
    assert info["outputs"] == ["x_y00000_x00064.png"] and info["valid"] == 0.5


def test_invalid_pixels_are_black_and_out_of_the_stretch(tmp_path: Path) -> None:
    values = scene(80, 80).astype(np.float32)
    _, picture = run_one(write_tif(tmp_path / "clean.tif", values), Chain(range_db=[-30, 5]), tmp_path / "clean")
    assert (picture > 0).all()
    for name, hole, chain in (
        ("nan", np.nan, Chain()),
        ("nodata", 0, Chain(nodata=0)),
        ("none", 1e30, Chain(nodata=1e30)),
    ):
        holed = values.copy()
        holed[:40] = holed[70, 5] = hole
        info, found = run_one(write_tif(tmp_path / f"{name}.tif", holed), chain, tmp_path / name)
        assert (found[:40] == 0).all() and found[70, 5] == 0 and info["valid"] == pytest.approx(0.5, abs=1e-3)
        alone, half = run_one(
            write_tif(tmp_path / "half.tif", values[40:]), Chain(looks=info["looks"][0]), tmp_path / "h"
        )
        assert np.array_equal(found[40:65], half[:25]), "what is above the border changed what is below"
        assert info["stretch_db"][0] == pytest.approx(alone["stretch_db"][0], abs=0.2)
    amplitude = np.sqrt(values)
    for part, chosen in (("real", 1j), ("imaginary", 1)):
        file = write_tif(tmp_path / f"{part}.tif", (amplitude * chosen).astype(np.complex64), nodata=0)
        assert run_one(file, Chain(), tmp_path / part)[0]["valid"] == 1, "one part of zero is no missing pixel"


def test_a_stretch_in_db_and_percentiles_are_what_they_say(tmp_path: Path) -> None:
    decibel = np.linspace(-40, 0, 100 * 100).reshape(100, 100).astype(np.float32)
    file = write_tif(tmp_path / "ramp.tif", decibel)
    plain = Chain(speckle_filter="none")
    _, fixed = run_one(file, replace(plain, range_db=[-30, -10]), tmp_path / "fixed")
    assert np.array_equal(fixed, np.clip(np.rint((decibel.astype(float) + 30) / 20 * 255), 0, 255))
    info, _ = run_one(file, replace(plain, percentiles=[5, 90]), tmp_path / "share")
    assert info["stretch_db"][0] == pytest.approx(list(np.percentile(decibel, (5, 90))), abs=1 / 256)
    assert info["looks"] == [None]


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three good images and every kind of bad one."""
    root = tmp_path_factory.mktemp("messy") / "root"
    noise = scene(400, 400)
    for name in ("good.tif", "sub/good.tif", "sub/good_VV.tiff"):
        write_tif(root / name.replace("good_VV", "other_VV"), scene().astype(np.float32))
    write_tif(root / "torn.tif", noise.astype(np.float32))
    for name in ("torn.png", "torn2.jpg"):
        Image.fromarray(np.clip(noise * 200, 0, 255).astype(np.uint8)).save(root / name)
    for name in ("torn.tif", "torn.png", "torn2.jpg"):
        content = (root / name).read_bytes()
        (root / name).with_stem(f"half_{name[-3:]}").write_bytes(content[: len(content) // 2])
        (root / name).unlink()
    (root / "empty.tif").touch()
    (root / "text.tif").write_text("no image")
    band = f'<VRTRasterBand dataType="Float32" band="1"><SimpleSource><SourceFilename>{root}/good.tif</SourceFilename>'
    virtual = f'<VRTDataset rasterXSize="70" rasterYSize="60">{band}</SimpleSource></VRTRasterBand></VRTDataset>'
    (root / "virtual.tif").write_text(virtual)
    os.mkfifo(root / "pipe.tif")
    write_tif(root.parent / "outside.tif", scene().astype(np.float32))
    (root / "link.tif").symlink_to(root.parent / "outside.tif")
    (root / "folder").symlink_to(root.parent)
    (root / "dangling.tif").symlink_to(root / "nothing.tif")
    bomb = {"driver": "GTiff", "count": 1, "dtype": "float32", "sparse_ok": True}
    for name, side, options in (
        ("bomb", 60_000, {"tiled": True}),
        ("bomb2", 70_000, {"tiled": True}),
        ("strip", 9_000, {"blockysize": 9_000, "compress": "deflate"}),
    ):
        rasterio.open(root / f"{name}.tif", "w", height=side, width=side, **{**bomb, **options}).close()
    Image.fromarray(np.full((40, 40), 7, np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE).save(root / "map.tif")
    write_tif(root / "nothing_valid.tif", np.full((30, 30), np.nan, np.float32))
    write_tif(root / "constant.tif", np.ones((30, 30), np.float32))
    write_tif(root / "signed.tif", np.full((30, 30), -5, np.int16))
    (root / "notes.txt").write_text("no image")
    return root


REASONS = {
    "half_tif": "image unreadable",
    "half_png": "image unreadable",
    "half_jpg": "image unreadable",
    "empty.tif": "empty file",
    "text": "image unreadable",
    "virtual": "image unreadable",
    "pipe.tif": "no plain file",
    "link.tif": "path leaves the image root",
    "folder": "link to a folder",
    "dangling.tif": "no plain file",
    "bomb": "declares more pixels than its bytes can hold",
    "bomb2": "more than 4,294,967,296 pixels",
    "strip": "stored in blocks of more than 268,435,456 bytes; rewrite it in tiles",
    "map": "colours of a palette, no radar values",
    "nothing_valid": "no valid pixel above zero",
    "constant": "no area to estimate the looks from; give --looks",
    "signed": "integers below zero; give --domain db or amplitude",
}


def test_bad_images_are_named_with_their_reasons_and_the_rest_goes_on(messy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = run_script(SCRIPT, "--root", messy, "--out", out, "--workers", 2)
    assert rejections(out) == REASONS
    assert set(outputs(out)) == {"good.png", "sub/good.png", "sub/other.png"}
    assert f"done 3, finished earlier 0, rejected {len(REASONS)}" in output and ".txt 1" in output
    assert not list(out.rglob("*.part")), "something half written is left"
    output = run_script(SCRIPT, "--root", messy, "--out", out, "--strict", code=2)
    assert "done 0, finished earlier 3" in output and "--strict" in output


def test_too_large_for_one_png_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tif(tmp_path / "x.tif", scene().astype(np.float32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 70 - 1)
    with pytest.raises(InputError, match="give --tile"):
        run_one(file, Chain(), tmp_path / "out")
    assert len(preprocess(tmp_path, RadarImage("x", ("x.tif",)), Chain(tile=32), tmp_path / "out")["outputs"]) == 6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "root"
    for number in range(40):
        write_tif(root / f"{number % 3}/{number}.tif", scene(200, 200, number).astype(np.float32))
    return root


def test_a_killed_run_leaves_whole_files_and_goes_on(many: Path, tmp_path: Path) -> None:
    chain = Chain(tile=128)
    preprocess_folder(many, tmp_path / "undisturbed", chain, workers=1)
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, "--root", many, "--out", out, "--tile", 128, "--workers", 2]
    done: list[int] = []
    for wanted in (1, 12):
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        log = out / "images.jsonl"
        while not (log.is_file() and log.read_bytes().count(b"\n") >= wanted):
            assert process.poll() is None or wanted < log.read_bytes().count(b"\n")
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done.append(log.read_bytes().count(b"\n"))
        for path in out.rglob("[!.]*.png"):
            Image.open(path).load()
    with open(out / "images.jsonl", "a") as file:
        file.write('{"image": "0/0", "sou')
    while True:  # the killed run's workers end a moment after it
        try:
            summary = preprocess_folder(many, out, chain, workers=2)
            break
        except InputError as error:
            assert "another run" in str(error)
            time.sleep(0.05)
    assert summary["earlier"] >= done[-1] >= 12 and summary["done"] + summary["earlier"] == 40
    assert outputs(out) == outputs(tmp_path / "undisturbed")
    lines = [sorted(map(repr, read_lines(folder))) for folder in (out, tmp_path / "undisturbed")]
    assert lines[0] == lines[1] and len(lines[0]) == 40


def read_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


def test_only_what_changed_or_is_missing_is_done_again(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for name in "abcd":
        write_tif(root / f"{name}.tif", scene().astype(np.float32))
    preprocess_folder(root, out, Chain(), workers=1)
    (out / "b.png").unlink()
    write_tif(root / "c.tif", scene(50).astype(np.float32))
    (root / "d.tif").write_bytes(b"II*\0 torn")
    summary = preprocess_folder(root, out, Chain(), workers=1)
    assert (summary["done"], summary["earlier"], summary["rejected"]) == (2, 1, {"image unreadable": 1})
    assert set(outputs(out)) == {"a.png", "b.png", "c.png"}, "a picture of a file that is no more stays"
    assert sorted((line["image"], line["height"]) for line in read_lines(out)) == [("a", 60), ("b", 60), ("c", 50)]


def test_other_parameters_another_root_and_strange_folders_are_refused(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write_tif(root / "a.tif", scene().astype(np.float32))
    preprocess_folder(root, out, Chain(), workers=1)
    parameters = json.loads((out / "preprocessing.json").read_text())
    assert parameters["percentiles"] == [1, 99] and parameters["speckle_filter"] == "refined_lee"
    for other in (Chain(looks=3), Chain(tile=64), Chain(percentiles=[2, 98])):
        with pytest.raises(InputError, match="was begun with"):
            preprocess_folder(root, out, other, workers=1)
    write_tif(tmp_path / "root2/a.tif", scene().astype(np.float32))
    with pytest.raises(InputError, match=r"was begun with root .*root2"):
        preprocess_folder(tmp_path / "root2", out, Chain(), workers=1)
    with pytest.raises(InputError, match="not made by this program"):
        preprocess_folder(tmp_path / "root2", root, Chain(), workers=1)
    with pytest.raises(InputError, match="lies in --root"):
        preprocess_folder(root, root / "out", Chain(), workers=1)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no image in it"):
        preprocess_folder(tmp_path / "bare", tmp_path / "new", Chain(), workers=1)
    with open(out / ".lock") as lock, pytest.raises(InputError, match="another run is writing"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        preprocess_folder(root, out, Chain(), workers=1)
    assert set(outputs(out)) == {"a.png"} and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"domain": "power"}, {"speckle_filter": "lee"}, {"combine": "max"}, {"bands": []}, {"looks": 0.0},
        {"combine": "colour"}, {"percentiles": [99.0, 1.0]}, {"percentiles": [1.0]}, {"range_db": [0.0, 0.0]},
        {"tile": 0}, {"tile": 64, "overlap": 64}, {"overlap": 8}, {"looks": float("nan")},
        {"nodata": float("nan")},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(options))}"):
        Chain(**options)


def test_a_full_disk_ends_the_run_with_one_line_and_no_half_file(many: Path, tmp_path: Path) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a picture of noise has about 30,000 bytes

    command = [sys.executable, SCRIPT, "--root", str(many), "--out", str(tmp_path / "out"), "--workers", "1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_disk, timeout=300)
    assert ended.returncode == 2 and "what was there is unchanged" in ended.stderr and "Traceback" not in ended.stderr
    assert not outputs(tmp_path / "out") and not list((tmp_path / "out").rglob("*.part"))
    summary = preprocess_folder(many, tmp_path / "out", Chain(), workers=1)
    assert summary["done"] == 40


def test_real_dual_polarisation_decibel_patches(real_data: Path, tmp_path: Path) -> None:
    summary = preprocess_folder(real_data / "bigearthnet_s1", tmp_path / "vv", Chain(), workers=1)
    assert (summary["done"], summary["rejected"], summary["ignored"]) == (6, {}, {"LICENSE": 1, ".json": 6})
    for line in read_lines(tmp_path / "vv"):
        assert (line["domain"], line["bands"], line["valid"], line["width"]) == ("db", ["VV"], 1, 120)
        assert 3 < line["looks"][0] < 12 and -30 < line["stretch_db"][0][0] < line["stretch_db"][0][1] < 5
    colour = Chain(bands=["VV", "VH"], combine="colour")
    preprocess_folder(real_data / "bigearthnet_s1", tmp_path / "colour", colour, workers=1)
    assert {Image.open(path).mode for path in (tmp_path / "colour").rglob("*.png")} == {"RGB"}


def test_real_eight_bit_scenes(real_data: Path, tmp_path: Path) -> None:
    file = sorted((real_data / "s1s2_pairs/sar").glob("*.png"))[0]
    info, picture = run_one(file, Chain(), tmp_path)
    assert info["domain"] == "amplitude" and 4 < info["looks"][0] < 12 and picture.shape == (1024, 1024)
    assert 90 < picture.mean() < 165
