import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
from corruptions import (
    HEIGHT,
    LARGEST_MB,
    WIDTH,
    Folder,
    asked,
    findings_of,
    noise,
    often,
    write_tiff,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sarlang_sft import image_checks
from sarlang_sft.backbone_fit import RELEASED, choose_sight, shape_problem
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.class_folders import convert_folders
from sarlang_sft.errors import InputError
from sarlang_sft.image_checks import examine_image, examine_images
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import (
    Record,
    to_table,
    write_data_folder,
)
from sarlang_sft.text_checks import SPECIAL_TOKENS

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_blank_images_are_no_copies_of_each_other(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0, None)
    for folder.victim in (0, 1, 4):
        folder.becomes(np.zeros((HEIGHT, WIDTH), np.uint8), ".bmp")
    assert [one.finding for one in findings_of(folder.write())] == ["blank_image"] * 3


def test_every_family_sees_as_its_released_models_do() -> None:
    assert set(RELEASED) == set(BACKBONES)
    expected = {"qwen2_vl": (28, 324), "qwen2_5_vl": (28, 324), "qwen3_vl": (32, 256), "llava": (14, 576)}
    for family in BACKBONES:
        sight = choose_sight(None, family, None)
        assert (sight.factor, sight.tokens(512, 512)) == expected.get(family, (14, sight.tokens(512, 512)))
        assert SPECIAL_TOKENS.search(BACKBONES[family].image_token)
        assert shape_problem(sight, 512, 512) is None
        assert shape_problem(sight, 9, 40)[0] == "tiny_image"
        picture = Image.fromarray(noise(0, 300, 200)).convert("RGB")
        inputs = sight.processor(images=[picture], text=BACKBONES[family].image_token, return_tensors="pt")
        image_token = sight.processor.tokenizer.convert_tokens_to_ids(BACKBONES[family].image_token)
        assert int((inputs["input_ids"] == image_token).sum()) == sight.tokens(300, 200)


def test_shapes_are_judged_by_the_processor(tmp_path: Path) -> None:
    sight = choose_sight(None, "qwen2_5_vl", 56 * 56)
    folder = Folder(tmp_path, 1, None)
    folder.becomes(noise(1, 300, 300))
    assert [(one.finding, one.image) for one in findings_of(folder.write(), sight)] == [
        ("strongly_resized", "images/1.png")
    ]
    assert shape_problem(sight, 27, 300)[0] == "tiny_image" and shape_problem(None, 27, 300) is None
    assert shape_problem(sight, 10, 2001)[0] == shape_problem(None, 10, 2001)[0] == "elongated_image"
    assert shape_problem(choose_sight(None, "llava", None), 100, 30_000)[0] != "elongated_image"  # it cuts the ends


def test_the_real_model_and_its_family_see_alike(real_data: Path) -> None:
    model, family = choose_sight(str(real_data / "qwen2_5_vl_7b"), None, None), choose_sight(None, "qwen2_5_vl", None)
    assert model.factor == family.factor == 28
    for size in [(20, 20), (128, 128), (512, 400), (5000, 4000)]:
        assert model.tokens(*size) == family.tokens(*size)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("a-model", "llava", None), "give one of the two"),
        ((None, "blip", None), "choose one of"),
        ((None, None, 5000), "give --model or --family"),
        ((None, "qwen2_5_vl", 9), "below the processor's smallest image"),
    ],
)
def test_a_backbone_that_makes_no_sense_is_refused(choice: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_sight(*choice)


def test_nothing_is_opened_that_an_image_refers_to(tmp_path: Path) -> None:
    """GDAL's virtual files name others, EPS starts a program, a pipe never ends, links go round in circles."""
    secret = tmp_path / "secret.png"
    Image.fromarray(noise(1)).save(secret)
    root = tmp_path / "root"
    root.mkdir()
    band = f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand>'
    (root / "virtual.tif").write_text(f'<VRTDataset rasterXSize="40" rasterYSize="32">{band}</VRTDataset>')
    (root / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    os.mkfifo(root / "pipe.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "inside.png").symlink_to(root / "real.png")
    shutil.copy(secret, root / "real.png")
    found = {name: examine_image(root, LARGEST_MB, name).problem for name in sorted(os.listdir(root))}
    assert {name: problem and problem[0] for name, problem in found.items()} == {
        "circle.png": "missing_image", "inside.png": None, "pipe.png": "missing_image",
        "program.png": "unreadable_image", "real.png": None, "virtual.tif": "unreadable_image",
    }  # fmt: skip
    assert "cannot identify" in found["program.png"][1]  # it was not even asked whether it is EPS
    for name in ("a\0b.png", "x" * 5000 + ".png", ""):
        assert examine_image(root, LARGEST_MB, name).problem[0] == "missing_image"


@often
@given(
    suffix=st.sampled_from([".png", ".jpg", ".bmp", ".tif"]), place=st.floats(0, 0.999), junk=st.binary(max_size=40)
)
def test_no_broken_file_raises(suffix: str, place: float, junk: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        Image.fromarray(noise(3)).save(path)
        whole = bytearray(path.read_bytes())
        start = int(place * len(whole))
        whole[start : start + len(junk)] = junk
        path.write_bytes(bytes(whole))
        fact = examine_image(Path(folder), LARGEST_MB, path.name)
        assert (fact.problem is None) == bool(fact.digest)


def test_colour_of_16_bit_and_palettes_in_tiffs_are_told(tmp_path: Path) -> None:
    colour = np.stack([noise(band) for band in range(3)]).astype(np.uint16) * 200
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=32, width=40, dtype="uint16") as file:
        file.write(colour)
    Image.fromarray(noise(1)).convert("P").save(tmp_path / "b.tif")
    write_tiff(tmp_path / "c.tif", np.stack([noise(band) for band in range(5)]))
    facts = [examine_image(tmp_path, LARGEST_MB, name) for name in ("a.png", "b.tif", "c.tif")]
    assert [(fact.pixels, fact.converted) for fact in facts] == [
        ("uint16", "the upper 8 bits of colour"), ("uint8", "palette, as its numbers"), ("uint8", "5 bands"),
    ]  # fmt: skip


def test_colours_that_differ_in_one_band_are_no_copies(tmp_path: Path) -> None:
    colour = np.stack([noise(band) for band in range(3)], axis=-1)
    digests = set()
    for band in range(4):
        other = colour.copy()
        other[0, 0, min(band, 2)] ^= 255 * (band < 3)
        Image.fromarray(other).save(tmp_path / f"{band}.png")
        digests.add(examine_image(tmp_path, LARGEST_MB, f"{band}.png").digest)
    assert len(digests) == 4


def test_whole_complex_numbers_are_read_and_huge_blocks_are_not(tmp_path: Path) -> None:
    shape = {"driver": "GTiff", "width": 40, "height": 32, "count": 1}
    with rasterio.open(tmp_path / "complex.tif", "w", dtype="complex_int16", **shape) as file:
        file.write((noise(1) + 1j * noise(2)).astype(np.complex64), 1)
    assert examine_image(tmp_path, LARGEST_MB, "complex.tif").pixels == "complex_int16"
    blocks = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "compress": "deflate"}
    with rasterio.open(tmp_path / "block.tif", "w", dtype="uint8", **shape, **blocks) as file:
        file.write(noise(1), 1)
    assert examine_image(tmp_path, LARGEST_MB, "block.tif").problem[0] == "huge_image"


def test_findings_are_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2, None)
    folder.path.unlink()
    folder.victim = 4
    folder.says("What is it?", "<image>")
    folder.with_box(1.0, 1.0, 0.0, 0.0)
    data = folder.write()
    assert findings_of(data, processes=2) == findings_of(data)
    assert [one.finding for one in findings_of(data)] == ["missing_image", "unusable_box", "special_token"]


def die(*_: object) -> None:
    os._exit(9)


def test_a_killed_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_checks, "examine_image", die)
    with pytest.raises(InputError, match="a worker process was killed"):
        list(examine_images(tmp_path, ["a.png", "b.png"], LARGEST_MB, 2))


def test_real_mstar_is_clean(real_data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("T72", "BMP2", "ZSU_23_4"):
            (tmp_path / "chips" / split / label).mkdir(parents=True)
            for path in sorted((real_data / "mstar10" / split / label).iterdir())[:6]:
                shutil.copy(path, tmp_path / "chips" / split / label)
    root = tmp_path / "chips"
    records, rejections, inputs = convert_folders(root, "MSTAR", 0.1, read_wording(), 5, 0)
    write_data_folder(tmp_path / "data", records, rejections, root, inputs)
    sight = choose_sight(str(real_data / "qwen2_5_vl_7b"), None, None)
    assert findings_of(tmp_path / "data") == findings_of(tmp_path / "data", sight) == []


def test_real_bigearthnet_is_float_and_whole(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "bigearthnet_s1"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tif"))
    records = [
        Record([name], 120, 120, "BigEarthNet", "train", dialogues=[asked(name, "others", "What is it?", "Land.")])
        for name in names
    ]
    write_data_folder(tmp_path / "data", to_table(records), [], root, {})
    found = findings_of(tmp_path / "data")
    assert {(one.finding, one.detail) for one in found} == {("deep_pixels", "float32")} and len(found) == len(names)
