from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.image_files import header_size, path_inside
from sarlang_sft.imagery import load_ops, load_picture, parse_ops, read_image, save_ops

RNG = np.random.default_rng(0)


def write_tif(path: Path, bands: np.ndarray) -> Path:
    bands = bands[None] if bands.ndim == 2 else bands
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype) as file:
        file.write(bands)
    return path


def test_eight_bit_grey_and_colour_keep_their_values(tmp_path: Path) -> None:
    grey, colour = RNG.integers(0, 256, (20, 30), np.uint8), RNG.integers(0, 256, (20, 30, 3), np.uint8)
    for name, picture in (("grey.png", grey), ("colour.bmp", colour)):
        Image.fromarray(picture).save(tmp_path / name)
    write_tif(tmp_path / "grey.tif", grey[None])
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_image(tmp_path / "grey.tif"), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_image(tmp_path / "colour.bmp"), colour)


def test_sixteen_bit_and_float_images_are_stretched_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 60000, 600).reshape(20, 30)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    decibel = (ramp / 60000 * 30 - 25).astype(np.float32)
    decibel[0, 0] = np.nan
    write_tif(tmp_path / "decibel.tif", np.stack([decibel, decibel - 7]))
    for name in ("deep.png", "decibel.tif"):
        assert header_size(tmp_path, name) == (30, 20)
        picture = read_image(tmp_path / name)
        assert picture.shape == (20, 30, 3) and np.isfinite(picture).all()
        assert picture.min() == 0 and picture.max() == 255 and picture[10, 15, 0] == pytest.approx(128, abs=8)


def test_complex_pixels_are_read_as_amplitude(tmp_path: Path) -> None:
    ramp = np.linspace(1, 100, 600, dtype=np.float32).reshape(1, 20, 30)
    plain = read_image(write_tif(tmp_path / "amplitude.tif", ramp))
    turned = ramp * np.exp(1j * np.arange(600).reshape(ramp.shape)).astype(np.complex64)
    assert np.allclose(read_image(write_tif(tmp_path / "complex.tif", turned)), plain, atol=0.1)


def test_files_that_refer_elsewhere_or_start_programs_are_never_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_tif(tmp_path / "outside.tif", np.ones((1, 8, 8), np.uint8))
    source = f"<SimpleSource><SourceFilename>{tmp_path}/outside.tif</SourceFilename></SimpleSource>"
    (root / "virtual.tif").write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">{source}'
        "</VRTRasterBand></VRTDataset>"
    )
    (root / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with rasterio.open(root / "virtual.tif") as file:
        assert file.read().sum() == 64, "GDAL itself follows it"
    for name in ("virtual.tif", "program.png"):
        assert header_size(root, name) == "image unreadable"
        with pytest.raises(InputError, match="unreadable image"):
            read_image(root / name)


def test_real_dual_polarisation_decibel_patch_is_read(real_data: Path) -> None:
    path = sorted((real_data / "bigearthnet_s1").glob("*/*VV.tif"))[0]
    picture = read_image(path)
    assert picture.shape == (120, 120, 3) and picture.std() > 20


def test_operations_in_order_and_augmentation_in_training_only(tmp_path: Path) -> None:
    picture = RNG.integers(0, 200, (50, 41), np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    ops = ["log", "standardise", "crop:24", "shift:3"]
    plain = np.asarray(load_picture(tmp_path / "x.png", ops))
    assert plain.shape == (24, 24, 3) and np.array_equal(plain, np.asarray(load_picture(tmp_path / "x.png", ops)))
    moved = {np.asarray(load_picture(tmp_path / "x.png", ops, np.random.default_rng(s))).tobytes() for s in range(8)}
    assert len(moved) > 4
    brightened = np.asarray(load_picture(tmp_path / "x.png", ["log"])).astype(float)[..., 0]
    assert np.abs(brightened - np.log1p(picture.astype(float)) / np.log(256) * 255).max() <= 0.5
    assert np.asarray(load_picture(tmp_path / "x.png", ["crop:64"])).shape == (64, 64, 3)
    standard = np.asarray(load_picture(tmp_path / "x.png", ["standardise"])).astype(float)
    assert standard.mean() == pytest.approx(127.5, abs=1) and standard.std() == pytest.approx(127.5 / 3, abs=1)


def test_operations_are_kept_beside_the_model(tmp_path: Path) -> None:
    assert load_ops(tmp_path) == []
    save_ops(tmp_path, ["log", "crop:64"])
    assert load_ops(tmp_path) == ["log", "crop:64"]


@pytest.mark.parametrize("op", ["sharpen", "crop", "crop:x", "crop:nan", "shift:0"])
def test_unknown_operations_are_refused_by_name(op: str) -> None:
    with pytest.raises(InputError, match=op.split(":")[0]):
        parse_ops([op])


def test_paths_stay_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    assert path_inside(tmp_path / "root", "a/b.png") == tmp_path.resolve() / "root/a/b.png"
    for relative in ("../x.png", "/etc/passwd", "link/x.png", "a/../../x.png"):
        with pytest.raises(InputError, match="leaves the image root"):
            path_inside(tmp_path / "root", relative)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(InputError, match=r"torn\.png: unreadable"):
        read_image(tmp_path / "torn.png")


def test_a_fixed_scale_gives_equal_values_equal_brightness_whatever_else_the_image_shows(tmp_path: Path) -> None:
    dark = np.linspace(-24, -20, 64, dtype=np.float32).reshape(8, 8)  # dB
    bright = dark.copy()
    bright[0] = 4.0
    ops = ["fixed"]
    one = np.asarray(load_picture(write_tif(tmp_path / "dark.tif", dark), ops)).astype(int)
    two = np.asarray(load_picture(write_tif(tmp_path / "bright.tif", bright), ops)).astype(int)
    assert np.array_equal(one[1:], two[1:]) and (two[0] > one[0]).all()
    assert np.allclose(one[..., 0], (dark + 30) / 35 * 255, atol=0.51)
    stretched = np.asarray(load_picture(tmp_path / "bright.tif", [])).astype(int)
    assert not np.array_equal(stretched[1:], np.asarray(load_picture(tmp_path / "dark.tif", [])).astype(int)[1:])

    linear = write_tif(tmp_path / "linear.tif", 10 ** (dark / 10))
    assert np.abs(np.asarray(load_picture(linear, ops)).astype(int) - one).max() <= 1
    turned = (10 ** (dark / 20) * np.exp(1j * dark)).astype(np.complex64)
    assert np.abs(np.asarray(load_picture(write_tif(tmp_path / "slc.tif", turned), ops)).astype(int) - one).max() <= 1


def test_a_fixed_scale_of_integers_keeps_the_order_of_all_16_bits(tmp_path: Path) -> None:
    numbers = np.array([[0, 10, 300, 65535]], np.uint16)
    shown = np.asarray(load_picture(write_tif(tmp_path / "dn.tif", numbers), ["fixed"]))[0, :, 0].astype(int)
    assert shown[0] == 0 and shown[-1] == 255 and (np.diff(shown) > 40).all()
    Image.fromarray(np.array([[0, 10, 200]], np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(load_picture(tmp_path / "grey.png", ["fixed"]))[0, :, 0].tolist() == [0, 10, 200]


def test_floats_that_a_fixed_scale_would_show_white_or_not_at_all_are_refused(tmp_path: Path) -> None:
    amplitudes = write_tif(tmp_path / "dn.tif", RNG.uniform(50, 3000, (16, 16)).astype(np.float32))
    with pytest.raises(UnreadableImageError, match=r"no dB or intensity .* as in `range:0:1000`"):
        load_picture(amplitudes, ["fixed"])
    assert 20 < np.asarray(load_picture(amplitudes, ["range:0:3000"])).mean() < 235
    with pytest.raises(UnreadableImageError):
        load_picture(write_tif(tmp_path / "nan.tif", np.full((4, 4), np.nan, np.float32)), ["fixed"])
    sea = write_tif(tmp_path / "sea.tif", np.full((4, 4), -40, np.float32))  # dark, but in the unit
    assert np.asarray(load_picture(sea, ["fixed"])).max() == 0


def test_a_range_is_in_the_unit_of_the_file_and_comes_first(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "vv_vh.tif", np.array([[[-25, 0]], [[np.nan, -12.5]]], np.float32))
    shown = np.asarray(load_picture(path, ["range:-25:0"]))
    assert shown[0].tolist() == [[0, 0, 0], [255, 128, 255]]  # VV, VH, VV
    for ops, message in (
        (["range:3"], "two rising"),
        (["range:0:-25"], "two rising"),
        (["log", "fixed"], "come first"),
    ):
        with pytest.raises(InputError, match=message):
            load_picture(path, ops)
