import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import ROOT, run_script
from PIL import Image
from radar_scenes import read_lines, scene, write_tif

from sarlang_sft.errors import InputError
from sarlang_sft.preprocessing import Chain
from sarlang_sft.preprocessing_run import preprocess_folder
from sarlang_sft.radar_files import find_images

SCRIPT = "data_prep/preprocess_sar.py"
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


def outputs(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def rejections(out: Path) -> dict[str, str]:
    return {row["image"]: row["reason"] for row in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}


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


def test_bad_images_are_named_with_their_reasons_and_the_rest_goes_on(messy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = run_script(SCRIPT, "--root", messy, "--out", out, "--workers", 2)
    assert rejections(out) == REASONS
    assert set(outputs(out)) == {"good.png", "sub/good.png", "sub/other.png"}
    assert f"done 3, finished earlier 0, rejected {len(REASONS)}" in output and ".txt 1" in output
    assert not list(out.rglob("*.part")), "something half written is left"
    output = run_script(SCRIPT, "--root", messy, "--out", out, "--strict", code=2)
    assert "done 0, finished earlier 3" in output and "--strict" in output


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


def test_a_full_disk_ends_the_run_with_one_line_and_no_half_file(many: Path, tmp_path: Path) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a picture of noise has about 30,000 bytes

    command = [sys.executable, SCRIPT, "--root", str(many), "--out", str(tmp_path / "out"), "--workers", "1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_disk, timeout=300)
    assert ended.returncode == 2 and "what was there is unchanged" in ended.stderr and "Traceback" not in ended.stderr
    assert not outputs(tmp_path / "out") and not list((tmp_path / "out").rglob("*.part"))
    summary = preprocess_folder(many, tmp_path / "out", Chain(), workers=1)
    assert summary["done"] == 40


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_a_file_that_changed_in_size_or_time_alone_is_done_again(change: str, tmp_path: Path) -> None:
    file = write_tif(tmp_path / "root/a.tif", scene().astype(np.float32))
    preprocess_folder(tmp_path / "root", tmp_path / "out", Chain(), 1)
    assert preprocess_folder(tmp_path / "root", tmp_path / "out", Chain(), 1)["earlier"] == 1
    stat = file.stat()
    if change == "bytes":
        with open(file, "ab") as opened:
            opened.write(b"\0")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time")))
    assert preprocess_folder(tmp_path / "root", tmp_path / "out", Chain(), 1)["done"] == 1


def test_pictures_of_files_that_became_bad_go_and_those_of_files_that_left_stay(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_tif(root / f"{name}.tif", scene().astype(np.float32))
    preprocess_folder(root, out, Chain(), 1)
    (root / "a.tif").unlink()
    Image.new("L", (70, 60), 9).save(root / "b.png")
    summary = preprocess_folder(root, out, Chain(), 1)
    assert summary["rejected"] == {"several files would become one image": 2} and summary["earlier"] == 1
    assert outputs(out).keys() == {"a.png", "c.png"} and [line["image"] for line in read_lines(out)] == ["a", "c"]


def test_torn_records_of_a_run_are_done_again_or_named(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("a", "b"):
        write_tif(root / f"{name}.tif", scene().astype(np.float32))
    preprocess_folder(root, out, Chain(), 1)
    whole = (out / "images.jsonl").read_bytes().splitlines(keepends=True)
    for torn in (b"\0\0\0\n", b'{"image": "b"}\n', b"[]\n", b'{"image":'):
        (out / "images.jsonl").write_bytes(whole[0] + torn)
        assert preprocess_folder(root, out, Chain(), 1)["done"] == 1 and len(read_lines(out)) == 2
    (out / "preprocessing.json").write_text("[]")
    with pytest.raises(InputError, match=r"preprocessing\.json: no valid JSON"):
        preprocess_folder(root, out, Chain(), 1)


def test_what_values_were_taken_for_is_said_and_nothing_usable_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_tif(root / "a.tif", scene().astype(np.float32))
    write_tif(root / "b.tif", (10 * np.log10(scene())).astype(np.float32))
    Image.new("L", (70, 60)).convert("P").save(root / "palette.png")
    output = run_script(SCRIPT, "--root", root, "--out", tmp_path / "out")
    assert "pixel values taken for: " in output and "intensity 1" in output and "db 1" in output
    assert "colours of a palette" in output
    output = run_script(SCRIPT, "--root", root, "--out", tmp_path / "none", "--bands", "VX", code=2)
    assert "none of its images can be used; most often: no band VX" in output


def test_two_files_of_one_polarisation_are_no_image(tmp_path: Path) -> None:
    write_tif(tmp_path / "x_VV.tif", scene().astype(np.float32))
    Image.new("L", (70, 60), 9).save(tmp_path / "x_vv.png")
    images, rejected, _ = find_images(tmp_path)
    assert not images and set(rejected.values()) == {"several files would become one image"}
