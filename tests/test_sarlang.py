import json
from pathlib import Path

import pytest
from conftest import run_script
from datasets import load_dataset
from PIL import Image

from sarlang_sft.errors import InputError
from sarlang_sft.image_lookup import index_images
from sarlang_sft.records import read_manifest, read_records, to_records
from sarlang_sft.sarlang import Prompts, convert, source_of, style_of, task_of

OFFICIAL_FORMS = [
    ("Are there any surrounding trees?", "identification"),
    ("Is there a road surrounding the stadium?", "identification"),
    ("Is there a ship in the image?", "identification"),
    ("What type of area is mostly visible?", "classification"),
    ("What categories are visible?", "classification"),
    ("How many harbors are located in the image?", "counting"),
    ("What is the object present in the area [56.0, 191.0, 112.0, 122.0]?", "referring"),
    ("What is the category visible in the area [88.0, 376.0, 90.0, 99.0]?", "referring"),
    ("Where are most harbors positioned within the image?", "positioning"),
    ("What shape are the swimming pools?", "others"),
    ("What direction is the main road?", "others"),
    ("What is the predominant land cover?", "others"),
]


@pytest.mark.parametrize(("question", "task"), OFFICIAL_FORMS)
def test_official_question_forms_are_recognised(question: str, task: str) -> None:
    assert task_of(question) == task


def test_sources_and_caption_styles_are_recognised() -> None:
    names = [
        "France_Alpes-Maritimes_Nice_3",
        "SV_Darwin_-12.4278_130.8688",
        "GF2_NewYork_1",
        "SN6_Rotterdam_2",
        "0009787",
    ]
    assert [source_of(name) for name in names] == [
        "OpenEarthMap-SAR", "OpenEarthMap-SAR", "DFC2023", "SpaceNet6", "SARDet-100K",
    ]  # fmt: skip
    assert style_of("Airplanes parked on an airport with taxiways and terminal buildings.") == "concise"
    assert style_of("The image shows a port. Ships lie at two piers.") == "complex"


def write_release(root: Path, rows: str, name: str = "SARVQA1_train.csv") -> Path:
    (root / "Text/VQA/train").mkdir(parents=True)
    (root / "SARimages").mkdir()
    for stem in ("0000001", "0000002"):
        Image.new("L", (32, 24)).save(root / f"SARimages/{stem}.png")
    (root / "Text/VQA/train" / name).write_text(rows, encoding="utf-8")
    return root


def test_bad_rows_are_rejected_with_reasons_and_the_rest_goes_on(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("L", (8, 8)).save(outside)
    root = write_release(
        tmp_path / "release",
        " Image Name , Question,Answer\n"
        "0000001.jpg,Is there a ship in the image?,Yes.\n"
        "0000009.png,Is there a ship in the image?,Yes.\n"
        "0000002.png,Is there a ship in the image?,\n"
        "0000002.png,,Yes.\n"
        "0000002.png,Is there a ship in the image?\n"
        "../../outside.png,Is there a ship in the image?,Yes.\n"
        "linked.png,Is there a ship in the image?,Yes.\n"
        "broken.png,Is there a ship in the image?,Yes.\n"
        'authors/path/0000002.tif,"Where are most ships\npositioned, roughly?",left.\n',
    )
    (root / "SARimages/broken.png").write_bytes(b"no picture")
    (root / "SARimages/linked.png").symlink_to(outside)
    out = tmp_path / "data"
    output = run_script("data_prep/convert_sarlang.py", "--root", root, "--out", out, "--val_fraction", 0)
    manifest = read_manifest(out)
    assert manifest["read"] == 9 == manifest["accepted"] + sum(manifest["rejected"].values())
    assert manifest["rejected"] == {
        "image not found": 1,
        "empty answer": 1,
        "empty question": 1,
        "wrong columns": 1,
        "path leaves the image root": 2,
        "image unreadable": 1,
    }
    for reason in manifest["rejected"]:
        assert reason in output
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert rejected[0] == {
        "file": "Text/VQA/train/SARVQA1_train.csv",
        "row": 2,
        "image": "0000009.png",
        "reason": "image not found",
    }
    records = list(read_records(out, "train"))
    assert [(r.images, r.width, r.height) for r in records] == [
        (["SARimages/0000001.png"], 32, 24),
        (["SARimages/0000002.png"], 32, 24),
    ]
    assert records[1].dialogues[0].turns[0].question == (
        "Question: Where are most ships\npositioned, roughly?. Answer the question concisely."
    )


def test_equal_names_are_told_apart_by_the_folders_in_the_text_then_by_the_split(tmp_path: Path) -> None:
    names = ("x/val/7.jpg", "x/train/7.jpg", "7.jpg", "8.jpg", "9.jpg")
    rows = "Image Name,Question,Answer\n" + "".join(f"{name},Is there a ship in the image?,Yes.\n" for name in names)
    root = write_release(tmp_path / "release", rows)
    (root / "Text/VQA/SARVQA1_test.csv").write_text(rows)
    places = ["SARDet/train/7.png", "SARDet/val/7.png", "SARDet/test/7.png", "SARDet_original/val/7.png"]
    for place in [*places, "a/8.png", "b/8.png", "SARDet/train/9.png"]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(root / place)
    table, rejections, _ = convert(root, root, 0, Prompts())
    assert [(r.images, [d.id for d in r.dialogues]) for r in to_records(table)] == [
        (["SARDet/val/7.png"], ["SARVQA1_train:1"]),
        (["SARDet/train/7.png"], ["SARVQA1_train:2", "SARVQA1_train:3"]),
        (["SARDet/train/9.png"], ["SARVQA1_train:5"]),
        (["SARDet/val/7.png"], ["SARVQA1_test:1", "SARVQA1_test:3"]),
        (["SARDet/train/7.png"], ["SARVQA1_test:2"]),
    ]
    assert [(r.row, r.reason) for r in rejections] == [
        (4, "several images of this name"), (4, "several images of this name"), (5, "image not found"),
    ]  # fmt: skip


def test_an_unbalanced_quote_loses_no_row_unseen(tmp_path: Path) -> None:
    good = '0000002.png, "How many ships, cars?", 2\n'
    rows = "Image Name,Question,Answer\n" + good + '0000001.png,"Is there a ship?,Yes.\n' + good * 9000
    table, rejections, _ = convert(*[write_release(tmp_path / "release", rows)] * 2, 0, Prompts())
    assert [d.turns[0].answer for r in to_records(table) for d in r.dialogues] == ["2"] * 9001
    assert [(r.row, r.image, r.reason) for r in rejections] == [(2, "0000001.png", "unbalanced quote")]


def test_other_encodings_special_tokens_and_repeated_files_are_named(tmp_path: Path) -> None:
    root = write_release(tmp_path / "release", "0000001.png,Is <|image_pad|> here?,Yes.\n0000001.png,Is it?,Yes.\n")
    _, rejections, _ = convert(root, root, 0, Prompts())
    assert [rejection.reason for rejection in rejections] == ["special token in the text"]
    path = root / "Text/VQA/train/SARVQA1_train.csv"
    (tmp_path / "release/copy").mkdir()
    (tmp_path / "release/copy/sarvqa1-train.CSV").write_text(path.read_text())
    with pytest.raises(InputError, match="hold the same texts"):
        convert(root, root, 0, Prompts())
    (tmp_path / "release/copy/sarvqa1-train.CSV").unlink()
    path.write_bytes("0000001.png,Où est-il?,là\n".encode("latin-1"))
    _, rejections, _ = convert(root, root, 0, Prompts())
    assert [rejection.reason for rejection in rejections] == ["not UTF-8 text"]


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    root = write_release(tmp_path / "release", "a/1.png,Is it?,Yes.\n")
    output = run_script("data_prep/convert_sarlang.py", "--root", root, "--out", tmp_path / "data", code=2)
    assert "none of 1 rows could be used; most often: image not found (such as 'a/1.png')" in output


def test_csv_and_json_of_one_release_give_the_same_records(sample: Path, tmp_path: Path) -> None:
    both = convert(sample, sample, 0.1, Prompts())
    copies = {}
    for suffix in (".csv", ".json"):
        for path in (sample / "Text").rglob(f"*{suffix}"):
            target = tmp_path / suffix[1:] / path.relative_to(sample)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        copies[suffix] = convert(tmp_path / suffix[1:], sample, 0.1, Prompts())
    assert copies[".csv"].records.equals(copies[".json"].records) and both.records.equals(copies[".csv"].records)
    assert all(path.endswith(".json") for path in both.inputs)


def test_mixed_vqa1_questions_get_the_official_prefix_and_val_holds_whole_images(data: Path) -> None:
    dialogues = {d.id: d for split in ("train", "val", "test") for r in read_records(data, split) for d in r.dialogues}
    for dialogue in dialogues.values():
        question = dialogue.turns[0].question
        if dialogue.subset == "vqa1":
            names = "top, center, bottom, left, right" if dialogue.task == "positioning" else "tank, car, aircraft"
            assert question.startswith(f"Question: The classes are: {names}")
        elif dialogue.subset == "vqa2":
            assert "The classes are" not in question
        else:
            assert question == "Describe the content of this image in one sentence."
    assert len(list(read_records(data, "val"))) == 3  # a tenth of 32 training images


def test_prefix_is_left_out_where_vqa1_is_alone(tmp_path: Path) -> None:
    rows = "Image Name,Question,Answer\n0000001.png,Is there a ship in the image?,no\n"
    root = write_release(tmp_path / "release", rows)
    (record,) = to_records(convert(root, root, 0, Prompts()).records)
    assert (
        record.dialogues[0].turns[0].question
        == "Question: Is there a ship in the image?. Answer the question concisely."
    )
    (record,) = to_records(convert(root, root, 0, Prompts(class_prefix="always")).records)
    assert "The classes are: tank" in record.dialogues[0].turns[0].question


def test_optical_twins_are_never_taken_for_radar_images(sample: Path) -> None:
    assert all(path.startswith("SARimages/") for paths in index_images(sample).values() for path in paths)
    assert len(index_images(sample / "RGBimages")) == 40


def test_data_folder_loads_with_datasets_and_holds_no_pixels(sample: Path, data: Path, tmp_path: Path) -> None:
    rows = load_dataset("parquet", data_files=str(data / "train.parquet"), cache_dir=str(tmp_path))["train"]
    assert rows[0]["images"][0].endswith(".png") and rows[0]["dialogues"][0]["turns"][0]["question"]
    pictures = sum(path.stat().st_size for path in (sample / "SARimages").iterdir())
    assert sum(path.stat().st_size for path in data.iterdir()) < pictures / 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--root", "/nowhere", "--out", "{tmp}/out"], "--root /nowhere: no such folder"),
        (["--root", "{tmp}", "--out", "{tmp}/out"], "no text file of the release"),
        (["--root", "{tmp}", "--out", "{tmp}/out", "--vqa_prompt", "Say it"], "--vqa_prompt must hold {question}"),
    ],
)
def test_wrong_input_names_the_option_and_ends_with_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    output = run_script(
        "data_prep/convert_sarlang.py", *[word.replace("{tmp}", str(tmp_path)) for word in words], code=2
    )
    assert message in output and "Traceback" not in output


def test_an_output_folder_with_other_things_is_refused(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    output = run_script("data_prep/convert_sarlang.py", "--root", sample, "--out", tmp_path, code=2)
    assert "holds other things (no manifest.json)" in output and (tmp_path / "precious.txt").exists()
