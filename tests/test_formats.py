import ast
import csv
import json
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from datasets import load_dataset
from foreign_files import FEW, IMAGES, SIZE, back, stored, theirs, there, two_turns
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from sarlang_sft.errors import InputError
from sarlang_sft.formats.exporting import export
from sarlang_sft.formats.importing import import_folder
from sarlang_sft.formats.rows import OWN
from sarlang_sft.formats.table import FORMATS, IMPORTABLE
from sarlang_sft.records import (
    SPLITS,
    TASKS,
    Box,
    Dialogue,
    Record,
    Turn,
    read_dialogue_table,
    read_records,
)
from sarlang_sft.sarlang import SPECIAL_TOKEN


def numbers(high: float) -> st.SearchStrategy[float]:
    return st.floats(1, high - 1, allow_nan=False, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    label = draw(st.text(max_size=5))
    if draw(st.booleans()):
        return Box(label, [draw(numbers(side)) for _ in range(4) for side in SIZE])
    x, y = (draw(numbers(side / 2)) for side in SIZE)
    return Box(label, [x, y, *(draw(numbers(side / 2)) for side in SIZE)])


def texts(boxes: list[Box], images: list[str]) -> st.SearchStrategy[str]:
    reserved = [tag for form in FORMATS.values() for tag in form.words.reserved]
    plain = st.one_of(
        st.text(max_size=20),
        st.sampled_from(['"q"\n', "\\", "\u2028", "[count] ", "{<1><2><3><4>}", "```", "<box>", "\r\n\t"]),
    ).filter(
        lambda text: not SPECIAL_TOKEN.search(text) and "<box:" not in text and not any(t in text for t in reserved)
    )
    if not boxes or not images:
        return plain
    placed = st.integers(0, len(boxes) - 1).map("<box:{}>".format)
    return (
        st.lists(st.one_of(plain, placed), max_size=3).map("".join).filter(lambda text: not SPECIAL_TOKEN.search(text))
    )


@st.composite
def record_lists(draw: st.DrawFn) -> list[Record]:
    keys = st.tuples(st.lists(st.sampled_from(IMAGES), max_size=3, unique=True).map(tuple), st.sampled_from(SPLITS))
    count = 0
    records = []
    for images, split in draw(st.lists(keys, min_size=1, max_size=4, unique=True)):
        named = draw(st.lists(boxes(), max_size=3))
        text = texts(named, list(images))
        dialogues = []
        for _ in range(draw(st.integers(1, 3))):
            count += 1
            turns = draw(st.lists(st.builds(Turn, text, text), min_size=1, max_size=3))
            style = draw(st.sampled_from([None, "concise", "complex"]))
            subset, task = draw(st.sampled_from(["vqa1", "é"])), draw(st.sampled_from(TASKS))
            dialogues.append(Dialogue(f"id:{count}", subset, task, turns, style))
        size = SIZE if images else (0, 0)
        sensor, resolution = draw(st.none() | st.text(max_size=4)), draw(st.none() | numbers(100))
        source = draw(st.text(max_size=4))
        records.append(Record(list(images), *size, source, split, sensor, resolution, named, dialogues))
    return records


@pytest.mark.parametrize("name", list(IMPORTABLE))
def test_what_goes_out_comes_back(name: str, pictures: Path) -> None:
    @FEW
    @given(record_lists(), st.sampled_from([None, "absolute", "relative"]))
    def check(records: list[Record], image_paths: str | None) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            summary = there(name, records, pictures, folder, image_paths)
            dialogues = sum(len(record.dialogues) for record in records)
            assert sum(summary["written"].values()) == dialogues and not summary["left_out"]
            root = None if IMPORTABLE[name].brings_images else pictures
            found, manifest, left_out = back(name, folder / "out", root, folder)
            assert found == sorted(records, key=repr) and not left_out
            assert manifest["read"] == manifest["accepted"] == dialogues
            if not root:
                for image in {image for record in records for image in record.images}:
                    assert (folder / "back_images" / image).read_bytes() == (pictures / image).read_bytes()

    check()


def test_every_format_says_it_in_its_own_words(pictures: Path, tmp_path: Path) -> None:
    image = f"{pictures.resolve()}/a/1.png"
    asked = {
        "llamafactory": ["<image>Where is the ship?", "[10, 20, 40, 31]", "And at [20, 5, 40, 8, 38, 30, 18, 27]?"],
        "swift": ["<image>Where is the ship?", "<bbox>", "And at <bbox>?"],
        "llava": ["<image>\nWhere is the ship?", "[10, 20, 40, 31]", "And at [20, 5, 40, 8, 38, 30, 18, 27]?"],
        "sarchat": [
            "<image>\n[refer] Where is the ship?", "{<10><20><40><31>} (bottom left)", "And at {<18><5><40><30>}?",
        ],
    }  # fmt: skip
    asked["sarchat"][1] = "{<10><20><40><31>} (center)"
    for name, (question, answer, second) in asked.items():
        summary = there(name, [two_turns()], pictures, tmp_path)
        assert ("rotated box written as the upright one around it" in summary["changed"]) == (
            name in ("swift", "sarchat")
        )
        text = next((tmp_path / "out").glob("train.json*")).read_text()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        key = "value" if name == "llava" else "content"
        first, other = (row.get("messages", row.get("conversations")) for row in rows)
        assert [first[0][key], first[1][key], other[2][key]] == [question, answer, second]
        assert len(first) == 2 and len(other) == 4
        assert rows[0].get("images", rows[0].get("image")) == ("a/1.png" if name == "llava" else [image])
        if name == "swift":
            assert rows[0]["objects"]["bbox"] == [[10.4, 20, 40.4, 30.6]] and rows[1]["objects"]["bbox"] == [
                [18, 5, 40, 30]
            ]


def test_what_cannot_be_written_is_left_out_and_said(pictures: Path, tmp_path: Path) -> None:
    record = two_turns()
    record.dialogues[:] = [
        Dialogue("x:1", "boxes", "grounding", [Turn("Where?", "<box:7>")]),
        Dialogue("x:2", "boxes", "grounding", [Turn("Is <bbox> a tag?", "Yes.")]),
        Dialogue("x:3", "boxes", "others", [Turn("Fine?", "Yes.")]),
        Dialogue("x:4", "boxes", "grounding", [Turn("Where?", "<box:2>")]),
    ]
    record.boxes.append(Box("far", [500, 500, 9, 9]))
    gone = Record(["a/9.png"], *SIZE, "made", "train", dialogues=[Dialogue("x:5", "b", "others", [Turn("?", "!")])])
    mute = Record(["b/1.png"], *SIZE, "made", "train", dialogues=[Dialogue("x:6", "b", "others", [])])
    bare = Record(["a/2.JPG"], *SIZE, "made", "train")
    common = ["no box of this number", "image not found", "dialogue without turns", "record without dialogues"]
    for name, reason in (("swift", "text holds a tag of the format"), ("llava", "box outside the picture")):
        left_out = there(name, [record, gone, mute, bare], pictures, tmp_path)["left_out"]
        assert left_out == dict.fromkeys([*common, reason], 1)
    with pytest.raises(InputError, match="image not found"):
        there("trl", [gone], pictures, tmp_path / "none")
    assert not (tmp_path / "none/out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").write_text("keep")
    with pytest.raises(InputError, match=r"no export\.json"):
        export(tmp_path / "data", "llava", tmp_path / "mine", pictures, ["train"], None, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine", "none", "out"]


def test_vlmevalkit_gets_one_question_a_row_and_what_it_cannot_hold_is_said(pictures: Path, tmp_path: Path) -> None:
    def table(path: Path) -> list[dict[str, str]]:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    said = [Turn('Where is\tthe "ship"?', "<box:0>"), Turn("Line\nbreak\r\u2028?", "None")]
    plain = [Dialogue(f"y:{number}", "vqa1", "counting", [turn]) for number, turn in enumerate(said)]
    record = two_turns()
    record.dialogues.extend(plain)
    pair = Record(["a/1.png", "b/1.png"], *SIZE, "made", "test", dialogues=[plain[1]])
    text = Record([], 0, 0, "made", "test", dialogues=[Dialogue("z:0", "b", "others", [Turn("?", "!")])])
    summary = there("vlmevalkit", [record, pair, text], pictures, tmp_path)
    assert summary["written"] == {"train": 3, "test": 1}
    assert summary["left_out"] == {"several turns (a row holds one question)": 1, "no image": 1}
    image = str(pictures.resolve() / "a/1.png")
    common = {"category": "counting", "split": "train", "subset": "vqa1", "image_path": image}
    assert table(tmp_path / "out/out_train.tsv")[1:] == [
        {"index": "1", "question": said[0].question, "answer": "[10, 20, 40, 31]", "id": "y:0#0", **common},
        {"index": "2", "question": said[1].question, "answer": "None", "id": "y:1#0", **common},
    ]
    [both] = table(tmp_path / "out/out_test.tsv")
    assert ast.literal_eval(both["image_path"]) == [image, str(pictures.resolve() / "b/1.png")]
    assert there("vlmevalkit", [pair], pictures, tmp_path)["written"] == {"test": 1}, "an earlier export is replaced"
    assert "invalid choice: 'vlmevalkit'" in run_script(
        "data_prep/import_records.py", "--source", tmp_path, "--format", "vlmevalkit", "--out", tmp_path / "in", code=2
    )


def test_an_edited_text_counts_and_an_untouched_one_stays(pictures: Path, tmp_path: Path) -> None:
    there("swift", [two_turns()], pictures, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    rows[0]["messages"][0]["content"] = "<image>Where is it?"
    rows[1]["messages"][3]["content"] = "A tank, at <bbox>."
    rows[1]["objects"]["bbox"].append([1, 2, 3, 4])
    (record,), _, _ = back("swift", theirs(tmp_path / "train.jsonl", rows), pictures, tmp_path)
    assert [turn for dialogue in record.dialogues for turn in dialogue.turns] == [
        Turn("Where is it?", "<box:0>"), Turn("How many ships?", "1"), Turn("And at <box:1>?", "A tank, at <box:2>."),
    ]  # fmt: skip
    assert record.boxes == [*two_turns().boxes, Box("", [1, 2, 2, 2])]


@pytest.mark.parametrize("name", ["llamafactory", "swift"])
def test_a_reader_that_fixes_types_early_reads_what_comes_late(name: str, pictures: Path, tmp_path: Path) -> None:
    many = [Dialogue(f"x:{number}", "b", "others", [Turn("Is it?", "Yes.")]) for number in range(60)]
    text = Record([], 0, 0, "text", "train", dialogues=[Dialogue("t", "b", "others", [Turn("?", "!")])])
    styled = Dialogue("s", "b", "description", [Turn("Describe.", "A port.")], "concise")
    records = [text, Record(["b/1.png"], *SIZE, "made", "train", dialogues=[*many, styled]), two_turns()]
    there(name, records, pictures, tmp_path)
    for file, count in (("train.jsonl", 63), ("train_text.jsonl", 1)):
        files = {"data_files": str(tmp_path / "out" / file), "cache_dir": str(tmp_path / "cache"), "chunksize": 1000}
        assert len(load_dataset("json", **files)["train"]) == count


@pytest.mark.parametrize("name", ["trl", "trl_completion"])
def test_sft_trainer_takes_it(name: str, data: Path, sample: Path, tiny: Path, tmp_path: Path) -> None:
    export(data, name, tmp_path / "out", sample, ["train"], None, 9)
    rows = load_dataset("parquet", data_files=str(tmp_path / "out/train.parquet"), cache_dir=str(tmp_path / "c"))[
        "train"
    ]
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    processor = AutoProcessor.from_pretrained(tiny)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "run"), max_length=None, max_steps=1, per_device_train_batch_size=2, use_cpu=True,
        bf16=False, report_to="none", save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    assert trainer.train().training_loss > 0
    dialogues = [dialogue for record in read_records(data, "train") for dialogue in record.dialogues]
    assert [json.loads(row)["id"] for row in rows[OWN]] == [dialogue.id for dialogue in dialogues]
    batch = trainer.data_collator([trainer.train_dataset[place] for place in (0, 40)])
    for ids, labels, dialogue in zip(batch["input_ids"], batch["labels"], (dialogues[0], dialogues[40]), strict=True):
        text = processor.decode(ids)
        assert dialogue.turns[0].question in text and processor.image_token in text
        learnt = processor.decode(labels[labels != -100])
        assert dialogue.turns[0].answer in learnt
        assert (dialogue.turns[0].question in learnt) == (name == "trl")


def test_from_the_command_line(data: Path, sample: Path, tmp_path: Path) -> None:
    told = run_script("data_prep/export.py", "--data", data, "--format", "llamafactory", "--out", tmp_path / "sar 1")
    assert f"Export: {tmp_path}/sar 1" in told and "train" in told
    info = json.loads((tmp_path / "sar 1/dataset_info.json").read_text())
    assert info["sar_1_val"]["file_name"] == "val.jsonl" and set(info) == {"sar_1_train", "sar_1_val", "sar_1_test"}
    words = ["--source", tmp_path / "sar 1", "--format", "llamafactory", "--image_root", sample]
    told = run_script("data_prep/import_records.py", *words, "--out", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(data) and "rejected 0" in told
    told = run_script("data_prep/export.py", "--data", data, "--format", "cvs", "--out", tmp_path / "x", code=2)
    assert "invalid choice" in told
    told = run_script("data_prep/import_records.py", *words[:-1], "/nowhere", "--out", tmp_path / "x", code=2)
    assert "--image_root /nowhere: no such folder" in told and "Traceback" not in told


@pytest.mark.parametrize("name", ["swift", "webdataset"])
def test_records_without_image_stay_apart(name: str, pictures: Path, tmp_path: Path) -> None:
    records = [
        Record([], 0, 0, "made", "train", dialogues=[Dialogue(f"{number}:{turn}", "b", "others", [Turn("Q", "A")])
                                                     for turn in range(number)])
        for number in (1, 2, 3)
    ]  # fmt: skip
    there(name, records, pictures, tmp_path)
    assert (
        back(name, tmp_path / "out", tmp_path / "root" if name == "webdataset" else pictures, tmp_path)[0] == records
    )


def test_rows_moved_to_the_file_of_another_split_belong_to_it(data: Path, sample: Path, tmp_path: Path) -> None:
    export(data, "swift", tmp_path / "out", sample, ["train", "train"], None, 9)
    lines = (tmp_path / "out/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/train.jsonl").write_text("".join(lines[100:]))
    (tmp_path / "out/val.jsonl").write_text("".join(lines[:100]))
    manifest, _ = import_folder(tmp_path / "out", "swift", tmp_path / "back", sample, "train", 0)
    counts = {split: sum(tasks["vqa1"].values()) for split, tasks in manifest["counts"].items() if tasks}
    rows = [json.loads(json.loads(line)["sarlang_sft"])["subset"] for line in lines]
    assert counts == {"train": rows[100:].count("vqa1"), "val": rows[:100].count("vqa1")}


def test_shards_are_never_unpacked_over_the_data_folder(data: Path, sample: Path, tmp_path: Path) -> None:
    export(data, "webdataset", tmp_path / "out", sample, ["test"], None, 9)
    for out, root in (("a", "a"), ("c/data", "c"), ("d", "d/images")):
        with pytest.raises(InputError, match="must lie beside --out"):
            import_folder(tmp_path / "out", "webdataset", tmp_path / out, tmp_path / root, "train", 0)
    import_folder(tmp_path / "out", "webdataset", tmp_path / "e", None, "train", 0)
    assert (tmp_path / "e/manifest.json").is_file() and (tmp_path / "e_images").is_dir()


def test_torn_data_folders_are_named(data: Path, sample: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "torn")
    content = (data / "train.parquet").read_bytes()
    for broken in (content[:3000], b"", content.replace(b"dialogues", b"dialoguez")):
        (tmp_path / "torn/train.parquet").write_bytes(broken)
        with pytest.raises(InputError, match=r"train\.parquet: .* convert again"):
            export(tmp_path / "torn", "swift", tmp_path / "out", sample, ["train"], None, 9)
    for broken in ("[]", "{}", '{"image_root": 3}'):
        (tmp_path / "torn/manifest.json").write_text(broken)
        with pytest.raises(InputError, match="has no `image_root`"):
            export(tmp_path / "torn", "swift", tmp_path / "out", sample, ["train"], None, 9)


def test_folders_that_others_filtered_or_extended_are_still_read(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    table = pq.read_table(data / "train.parquet")
    types = [pa.large_string() if column.type == pa.string() else column.type for column in table.schema]
    table = table.cast(pa.schema(zip(table.schema.names, types, strict=True)))
    pq.write_table(table.append_column("note", pa.repeat("mine", len(table))), tmp_path / "data/train.parquet")
    assert list(read_records(tmp_path / "data", "train")) == list(read_records(data, "train"))
    assert len(read_dialogue_table(tmp_path / "data", "train")) == len(read_dialogue_table(data, "train"))
