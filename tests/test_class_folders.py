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
    assert manifest["read"] == manifest["accepted"] + 8 * 4 and "image unreadable" in output
    records = [record for split in ("train", "val", "test") for record in read_records(tmp_path / "data", split)]
    assert len(records) == 30
    asked: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        label = record.images[0].split("/")[1]
        turns = [(dialogue.task, dialogue.turns[0]) for dialogue in record.dialogues]
        tasks = Counter(task for task, _ in turns)
        assert tasks["classification"] == 1 and tasks["description"] == 5
        for task, turn in turns:
            if task == "identification":
                (meant,) = [name for name in KINDS if name in turn.question]
                asked[record.split, meant, turn.answer] += 1
                assert (turn.answer == "Yes.") == (meant == label)
            else:
                assert label in turn.answer
        captions = [turn.answer for task, turn in turns if task == "description"]
        assert len({*captions}) == 5 and any(KINDS[label] in caption for caption in captions)
        assert {one.style for one in record.dialogues if one.task == "description"} == {"general", "complex"}
        assert (record.width, record.height, record.source) == (40, 30, "chips")
    assert sum(record.split == "val" for record in records) == 1
    for split, label, _ in asked:
        assert asked[split, label, "Yes."] == asked[split, label, "No."] >= 4
    assert len(asked) == 2 * 2 * 3
    assert read_wording(str(tmp_path / "data/wording.yaml")).content == read_wording().content


def test_classes_of_any_size_are_asked_for_with_yes_as_often_as_with_no(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for label, count in (("ship", 12), ("car", 3), ("tank", 1), ("empty", 0)):
        (tmp_path / "root/test" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (40, 30), number).save(tmp_path / f"root/test/{label}/{number}.png")
    run("data_prep/convert_folders.py", "--root", tmp_path / "root", "--out", tmp_path / "data")
    turns = [
        one.turns[0]
        for record in read_records(tmp_path / "data", "test")
        for one in record.dialogues
        if one.task == "identification"
    ]
    for label, count in (("ship", 4), ("car", 3), ("tank", 1), ("empty", 0)):
        answers = Counter(turn.answer for turn in turns if label in turn.question)
        assert answers == Counter({"Yes.": count, "No.": count})


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
