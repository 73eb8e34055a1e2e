from collections import Counter
from pathlib import Path

from conftest import run_script
from PIL import Image

from sarlang_sft.records import read_manifest, read_records


def make_folders(root: Path) -> Path:
    names = ["a.png", "b.JPG", "c.Jpeg", "d.TIF", "e.bmp"]
    for split in ("Train", "test"):
        for label in ("T72", "BRDM_2", "ZSU_23_4"):
            (root / split / label).mkdir(parents=True)
            for name in names:
                Image.new("L", (40, 30), 90).save(root / split / label / name)
    return root


def test_every_image_gives_a_class_a_yes_a_no_and_a_caption(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "chips")
    (root / "Train/T72/notes.txt").write_text("no picture")
    (root / "Train/T72/torn.png").write_bytes(b"\x89PNG")
    Image.new("L", (40, 30)).save(root / "Train/loose.png")
    Image.new("L", (900, 3)).save(root / "Train/T72/line.png")
    (root / "Train/T72/deeper").mkdir()
    (root / "Train/T72/a.png").rename(root / "Train/T72/deeper/a.png")
    output = run_script(
        "data_prep/convert_folders.py", "--root", root, "--out", tmp_path / "data", "--source", "chips"
    )
    manifest = read_manifest(tmp_path / "data")
    assert manifest["rejected"] == {
        "not an image file": 4,
        "image unreadable": 4,
        "not in a class folder": 4,
        "image too elongated": 4,
    }
    assert manifest["read"] == 4 * 34 and manifest["accepted"] == 4 * 30 and "image unreadable" in output
    records = [record for split in ("train", "val", "test") for record in read_records(tmp_path / "data", split)]
    for record in records:
        label = record.images[0].split("/")[1]
        turns = [(dialogue.task, dialogue.turns[0]) for dialogue in record.dialogues]
        assert Counter(task for task, _ in turns) == {"classification": 1, "identification": 2, "description": 1}
        for task, turn in turns:
            if task == "identification":
                assert (turn.answer == "Yes.") == (f"a {label} in" in turn.question)
            else:
                assert label in turn.answer
        assert (record.width, record.height, record.source) == (40, 30, "chips")
    assert sum(record.split == "val" for record in records) == 1


def test_real_mstar_comes_in_whole(real_data: Path, tmp_path: Path) -> None:
    run_script("data_prep/convert_folders.py", "--root", real_data / "mstar10", "--out", tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    assert manifest["accepted"] == manifest["read"] == 4 * 5171
    assert len(list(read_records(tmp_path / "data", "test"))) == 2425


def test_a_root_without_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "T72").mkdir()
    output = run_script("data_prep/convert_folders.py", "--root", tmp_path, "--out", tmp_path / "data", code=2)
    assert "no folder named train, val or test" in output
