from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import read_manifest, read_records

KINDS = {"T72": "battle tank", "BRDM_2": "reconnaissance vehicle", "ZSU_23_4": "self-propelled anti-aircraft gun"}


def make_folders(root: Path) -> Path:
    names = ["a.png", "b.JPG", "c.Jpeg", "d.TIF", "e.bmp"]
    for split in ("Train", "test"):
        for label in ("T72", "BRDM_2", "ZSU_23_4"):
            (root / split / label).mkdir(parents=True)
            for name in names:
                Image.new("L", (40, 30), 90).save(root / split / label / name)
    return root


def test_every_image_gives_a_class_a_yes_a_no_and_five_captions(run: Callable[..., str], tmp_path: Path) -> None:
    root = make_folders(tmp_path / "chips")
    (root / "Train/T72/notes.txt").write_text("no picture")
    (root / "Train/T72/torn.png").write_bytes(b"\x89PNG")
    Image.new("L", (40, 30)).save(root / "Train/loose.png")
    Image.new("L", (900, 3)).save(root / "Train/T72/line.png")
    (root / "Train/T72/deeper").mkdir()
    (root / "Train/T72/a.png").rename(root / "Train/T72/deeper/a.png")
    output = run("data_prep/convert_folders.py", "--root", root, "--out", tmp_path / "data", "--source", "chips")
    manifest = read_manifest(tmp_path / "data")
    assert manifest["rejected"] == {
        "not an image file": 8,
        "image unreadable": 8,
        "not in a class folder": 8,
        "image too elongated": 8,
    }
    assert manifest["read"] == 8 * 34 and manifest["accepted"] == 8 * 30 and "image unreadable" in output
    records = [record for split in ("train", "val", "test") for record in read_records(tmp_path / "data", split)]
    for record in records:
        label = record.images[0].split("/")[1]
        turns = [(dialogue.task, dialogue.turns[0]) for dialogue in record.dialogues]
        assert Counter(task for task, _ in turns) == {"classification": 1, "identification": 2, "description": 5}
        for task, turn in turns:
            if task == "identification":
                assert (turn.answer == "Yes.") == (label in turn.question)
            else:
                assert label in turn.answer
        captions = [turn.answer for task, turn in turns if task == "description"]
        assert len({*captions}) == 5 and any(KINDS[label] in caption for caption in captions)
        assert {one.style for one in record.dialogues if one.task == "description"} == {"general", "complex"}
        assert (record.width, record.height, record.source) == (40, 30, "chips")
    assert sum(record.split == "val" for record in records) == 1
    assert read_wording(str(tmp_path / "data/wording.yaml")).content == read_wording().content


def test_classes_without_a_kind_get_general_captions_and_their_number_is_a_choice(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for label in ("iceberg", "oil_rig"):
        (tmp_path / "root/train" / label).mkdir(parents=True)
        Image.new("L", (40, 30), 90).save(tmp_path / "root/train" / label / "a.png")
    words = ["--root", tmp_path / "root", "--out", tmp_path / "data", "--val_fraction", 0]
    run("data_prep/convert_folders.py", *words)
    first, second = read_records(tmp_path / "data", "train")
    for record, name, article in ((first, "iceberg", "an iceberg"), (second, "oil rig", "an oil rig")):
        captions = [one for one in record.dialogues if one.task == "description"]
        assert len(captions) == 5 and {one.style for one in captions} == {"general"}
        assert all(article in one.turns[0].answer.lower() for one in captions)
        assert record.dialogues[0].turns[0].answer == f"{name}."
    run("data_prep/convert_folders.py", *words, "--captions", 1)
    assert [len(record.dialogues) for record in read_records(tmp_path / "data", "train")] == [4, 4]


def test_real_mstar_comes_in_whole(run: Callable[..., str], real_data: Path, tmp_path: Path) -> None:
    run("data_prep/convert_folders.py", "--root", real_data / "mstar10", "--out", tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    assert manifest["accepted"] == manifest["read"] == 8 * 5171
    assert len(list(read_records(tmp_path / "data", "test"))) == 2425


def test_a_root_without_splits_is_refused(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "T72").mkdir()
    output = run("data_prep/convert_folders.py", "--root", tmp_path, "--out", tmp_path / "data", code=2)
    assert "no folder named train, val or test" in output
