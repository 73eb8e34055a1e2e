from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from radar_scenes import read_lines, scene, write_tif

from sarlang_sft import preprocessing
from sarlang_sft.errors import InputError
from sarlang_sft.preprocessing import Area, Chain, preprocess, tile_areas
from sarlang_sft.preprocessing_run import preprocess_folder
from sarlang_sft.radar_files import RadarImage, find_images


def run_one(file: Path, chain: Chain, out: Path) -> tuple[dict, np.ndarray]:
    """What is recorded of one file, and its picture."""
    info = preprocess(file.parent, RadarImage("picture", (file.name,)), chain, out)
    return info, np.asarray(Image.open(out / "picture.png"))


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


def test_too_large_for_one_png_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tif(tmp_path / "x.tif", scene().astype(np.float32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 70 - 1)
    with pytest.raises(InputError, match="give --tile"):
        run_one(file, Chain(), tmp_path / "out")
    assert len(preprocess(tmp_path, RadarImage("x", ("x.tif",)), Chain(tile=32), tmp_path / "out")["outputs"]) == 6


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


def test_a_few_intensities_below_zero_are_no_decibel_and_a_fill_value_is_asked_for(tmp_path: Path) -> None:
    values = scene(100, 100).astype(np.float32)
    clean, _ = run_one(write_tif(tmp_path / "clean.tif", values), Chain(), tmp_path / "clean")
    values[3, 3] = -1e-6
    noisy, _ = run_one(write_tif(tmp_path / "noisy.tif", values), Chain(), tmp_path / "noisy")
    assert noisy["domain"] == clean["domain"] == "intensity" and noisy["looks"] == pytest.approx(clean["looks"])
    values[:10] = -9999
    with pytest.raises(InputError, match="no dB; give --domain intensity, or --nodata"):
        run_one(write_tif(tmp_path / "filled.tif", values), Chain(), tmp_path / "filled")
    filled, _ = run_one(tmp_path / "filled.tif", Chain(nodata=-9999), tmp_path / "filled")
    assert filled["domain"] == "intensity" and filled["valid"] == pytest.approx(0.9)


def test_masked_pixels_take_no_part_and_sidecars_are_never_read(tmp_path: Path) -> None:
    values = scene().astype(np.float32)
    file = write_tif(tmp_path / "inner.tif", values)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(file, "r+") as opened:
        opened.write_mask(np.arange(60)[:, None] * np.ones((1, 70)) >= 15)
    info, picture = run_one(file, Chain(), tmp_path / "inner")
    assert info["valid"] == 0.75 and not picture[:15].any() and picture[15:].any()
    write_tif(tmp_path / "elsewhere.tif", np.zeros((60, 70), np.uint8))
    file = write_tif(tmp_path / "beside.tif", values)
    band = '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>'
    (tmp_path / "beside.tif.msk").write_text(
        f'<VRTDataset rasterXSize="70" rasterYSize="60"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f"{band}{tmp_path}/elsewhere.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(file) as opened:
        assert not opened.read_masks(1).any(), "GDAL itself follows it"
    assert run_one(file, Chain(), tmp_path / "beside")[0]["valid"] == 1
