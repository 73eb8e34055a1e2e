"""Neighbours' formats: what goes out comes back, what others wrote comes in, and nothing broken or hostile crashes."""

import io
import json
import shutil
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import run_script
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from sarlang_sft.errors import InputError
from sarlang_sft.formats.exporting import export
from sarlang_sft.formats.importing import import_folder, import_rows
from sarlang_sft.formats.rows import OWN
from sarlang_sft.formats.table import FORMATS
from sarlang_sft.records import (
    SPLITS,
    TASKS,
    Box,
    Dialogue,
    Record,
    Rejection,
    Turn,
    read_manifest,
    read_records,
    to_records,
    to_table,
    write_data_folder,
)
from sarlang_sft.sarlang import SPECIAL_TOKEN

SIZE = (64, 48)
IMAGES = ["a/1.png", "a/2.JPG", "b/1.png", "b c/ü.tif", "0000001.bmp"]
BY_FILES = [name for name, form in FORMATS.items() if not form.brings_images]
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(IMAGES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE, 40 * number).save(root / name)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def imported(*words: object) -> tuple[list[Record], list[Rejection], dict[str, str], Counter]:
    """[`import_rows`] with its records as objects."""
    table, *others = import_rows(*words)
    return list(to_records(table)), *others


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


def stored(data: Path) -> list[Record]:
    return sorted((record for split in SPLITS for record in read_records(data, split)), key=repr)


def there(name: str, records: list[Record], root: Path, folder: Path, image_paths: str | None = None) -> dict:
    write_data_folder(folder / "data", to_table(records), [], root, {})
    return export(folder / "data", name, folder / "out", root, list(SPLITS), image_paths, 2)


def back(name: str, source: Path, root: Path | None, folder: Path) -> tuple[list[Record], dict, Counter]:
    manifest, left_out = import_folder(source, name, folder / "back", root, "train", 0.5)
    return stored(folder / "back"), manifest, left_out


@pytest.mark.parametrize("name", list(FORMATS))
def test_what_goes_out_comes_back(name: str, pictures: Path) -> None:
    @FEW
    @given(record_lists(), st.sampled_from([None, "absolute", "relative"]))
    def check(records: list[Record], image_paths: str | None) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            summary = there(name, records, pictures, folder, image_paths)
            dialogues = sum(len(record.dialogues) for record in records)
            assert sum(summary["written"].values()) == dialogues and not summary["left_out"]
            root = None if FORMATS[name].brings_images else pictures
            found, manifest, left_out = back(name, folder / "out", root, folder)
            assert found == sorted(records, key=repr) and not left_out
            assert manifest["read"] == manifest["accepted"] == dialogues
            if not root:
                for image in {image for record in records for image in record.images}:
                    assert (folder / "back_images" / image).read_bytes() == (pictures / image).read_bytes()

    check()


def two_turns() -> Record:
    boxes = [Box("ship", [10.4, 20, 30, 10.6]), Box("car", [20, 5, 40, 8, 38, 30, 18, 27])]
    dialogues = [
        Dialogue("x:1", "boxes", "grounding", [Turn("Where is the ship?", "<box:0>")]),
        Dialogue("x:2", "boxes", "counting", [Turn("How many ships?", "1"), Turn("And at <box:1>?", "A car.")]),
    ]
    return Record(["a/1.png"], *SIZE, "made", "train", boxes=boxes, dialogues=dialogues)


def test_every_format_says_it_in_its_own_words(pictures: Path, folder: Path) -> None:
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
        summary = there(name, [two_turns()], pictures, folder)
        assert ("rotated box written as the upright one around it" in summary["changed"]) == (
            name in ("swift", "sarchat")
        )
        text = next((folder / "out").glob("train.json*")).read_text()
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


def test_what_cannot_be_written_is_left_out_and_said(pictures: Path, folder: Path) -> None:
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
        left_out = there(name, [record, gone, mute, bare], pictures, folder)["left_out"]
        assert left_out == dict.fromkeys([*common, reason], 1)
    with pytest.raises(InputError, match="image not found"):
        there("trl", [gone], pictures, folder / "none")
    assert not (folder / "none/out").exists()
    (folder / "mine").mkdir()
    (folder / "mine/precious.txt").write_text("keep")
    with pytest.raises(InputError, match=r"no export\.json"):
        export(folder / "data", "llava", folder / "mine", pictures, ["train"], None, 9)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "mine", "none", "out"]


def test_an_edited_text_counts_and_an_untouched_one_stays(pictures: Path, folder: Path) -> None:
    there("swift", [two_turns()], pictures, folder)
    rows = [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()]
    rows[0]["messages"][0]["content"] = "<image>Where is it?"
    rows[1]["messages"][3]["content"] = "A tank, at <bbox>."
    rows[1]["objects"]["bbox"].append([1, 2, 3, 4])
    (record,), _, _ = back("swift", theirs(folder / "train.jsonl", rows), pictures, folder)
    assert [turn for dialogue in record.dialogues for turn in dialogue.turns] == [
        Turn("Where is it?", "<box:0>"), Turn("How many ships?", "1"), Turn("And at <box:1>?", "A tank, at <box:2>."),
    ]  # fmt: skip
    assert record.boxes == [*two_turns().boxes, Box("", [1, 2, 2, 2])]


def theirs(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def said(*texts: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[place % len(roles)], "content": text} for place, text in enumerate(texts)]


def spoken(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def test_rows_by_others_come_in_with_guessed_tasks_one_record_per_image(pictures: Path, folder: Path) -> None:
    rows = [
        {"messages": said("<image>How many ships?", "2"), "images": ["/home/them/data/a/1.png"]},
        {
            "messages": said("<image>\nDescribe the image.", "A port.", "Is there a ship?", "Yes."),
            "images": ["a/1.png"],
        },
        {
            "messages": said("Be kind.", "<image>Is it?", "No", roles=("system", "user", "assistant")),
            "images": "ü.jpg",
        },
        {"messages": said("<image>Is it?", "No"), "images": "1.jpg"},
        {"messages": said("<image> or <image>?", "The first."), "images": ["them/b/1.tif", "A/2.png"]},
        {"messages": said("What is SAR?", "Radar."), "images": None},
        {"messages": said("<image>Where is it?", "left"), "images": ["C:\\them\\0000001.png"]},
    ]
    source = theirs(folder / "all.jsonl", rows)
    records, rejections, inputs, left_out = imported(source, "llamafactory", pictures, "test", 0.5)
    assert [(record.images, record.source, record.split, (record.width, record.height)) for record in records] == [
        (["a/1.png"], "SARDet-100K", "test", SIZE),
        (["b c/ü.tif"], "unknown", "test", SIZE),
        (["b/1.png", "a/2.JPG"], "SARDet-100K", "test", SIZE),
        ([], "unknown", "test", (0, 0)),
        (["0000001.bmp"], "SARDet-100K", "test", SIZE),
    ]
    asked = [(dialogue.id, dialogue.task, dialogue.style, len(dialogue.turns)) for dialogue in records[0].dialogues]
    assert asked == [("all.jsonl:1", "counting", None, 1), ("all.jsonl:2", "description", "concise", 2)]
    assert rejections == [Rejection("all.jsonl", 4, "1.jpg", "several images of this name")]
    assert records[2].dialogues[0].turns == [Turn("or ?", "The first.")] and list(inputs) == ["all.jsonl"]
    assert left_out == {"system prompt": 1, "place of an <image> tag within the text (images come first)": 1}


def test_the_other_shapes_of_a_row_mean_the_same(pictures: Path, folder: Path) -> None:
    typed = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    rows = [
        {"id": 1, "image": "a/1.png", "conversations": spoken("<image>\nHow many?", "2")},
        {
            "images": ["a/1.png"],
            "messages": [{"role": "user", "content": typed}, {"role": "assistant", "content": "2"}],
        },
        {
            "images": ["a/1.png"],
            "prompt": [{"role": "user", "content": typed}],
            "completion": said("2", roles=("assistant",)),
        },
        {"image": {"path": "a/1.png", "bytes": None}, "prompt": "How many?", "completion": "2"},
    ]
    source = theirs(folder / "rows.json", rows)
    records, rejections, _, _ = imported(source, "trl", pictures, "train", 0)
    assert [turn for dialogue in records[0].dialogues for turn in dialogue.turns] == [Turn("How many?", "2")] * 4
    assert len(records) == 1 and not rejections
    records, rejections, _, _ = imported(source, "llava", pictures, "train", 0)
    assert [row.reason for row in rejections] == ["number of <image> tags differs from the number of images"]


def test_boxes_of_others_become_boxes(pictures: Path, folder: Path) -> None:
    rows = [
        {
            "messages": said("<image>Find <ref-object> and <ref-object>.", "<bbox>, <bbox>"), "images": ["a/1.png"],
            "objects": {"ref": ["ship", "car"], "bbox": [[10, 20, 5, 40], [1, 2, 3, 4]]},
        },
        {
            "messages": said("<image>Find it.", "<bbox>"), "images": ["a/1.png"],
            "objects": {"ref": [], "bbox": [[0.5, 0.5, 1, 1]], "bbox_type": "norm1"},
        },
        {"messages": said("<image>Find it.", "<bbox>"), "images": ["a/1.png"], "objects": {"bbox": []}},
        {"messages": said("<image>Find it.", "<bbox>"), "images": ["a/1.png"], "objects": {"bbox": [[1, 2, "x", 3]]}},
        {"messages": said("<image>Find it.", "<bbox>"), "images": ["a/1.png"]},
    ]  # fmt: skip
    records, rejections, _, _ = imported(theirs(folder / "a.jsonl", rows), "swift", pictures, "train", 0)
    assert records[0].boxes == [
        Box("ship", [5, 20, 5, 20]), Box("car", [1, 2, 2, 2]), Box("", [32, 24, 32, 24]),
    ]  # fmt: skip
    assert [dialogue.turns for dialogue in records[0].dialogues] == [
        [Turn("Find ship and car.", "<box:0>, <box:1>")], [Turn("Find it.", "<box:2>")],
    ]  # fmt: skip
    fewer = "fewer objects than tags of them"
    assert [row.reason for row in rejections] == [fewer, "box is not four numbers", fewer]
    rows = [
        {
            "messages": said("<image>\n[refer] Locate 1 aircraft.", "{<39><26><47><44>} (bottom right)"),
            "images": ["b/1.jpg"],
        },
        {"messages": said("<image>\n[strange] Is it?", "Yes"), "images": ["b/1.jpg"]},
    ]
    ((record,), _, _, _) = imported(theirs(folder / "b.json", rows), "sarchat", pictures, "train", 0)
    assert record.boxes == [Box("", [39, 26, 8, 18])]
    assert [(d.task, d.turns) for d in record.dialogues] == [
        ("grounding", [Turn("Locate 1 aircraft.", "<box:0> (bottom right)")]),
        ("others", [Turn("[strange] Is it?", "Yes")]),
    ]


def test_bad_rows_are_rejected_with_reasons(pictures: Path, folder: Path) -> None:
    root = folder / "images"
    shutil.copytree(pictures, root)
    (root / "linked.png").symlink_to(pictures / "a/1.png")
    (root / "torn.png").write_bytes(b"\x89PNG")
    good = {"messages": said("<image>Is it?", "Yes"), "images": ["a/1.png"]}
    bad = [
        (good | {"images": ["a/9.png"]}, "image not found"),
        (good | {"images": ["../secret.png"]}, "path leaves the image root"),
        (good | {"images": ["linked.png"]}, "path leaves the image root"),
        (good | {"images": ["torn.png"]}, "image unreadable"),
        (good | {"images": ["/" + "x" * 5000]}, "image not found"),
        (good | {"images": ["a\0.png"]}, "image not found"),
        (good | {"images": []}, "number of <image> tags differs from the number of images"),
        (good | {"images": ["a/1.png"] * 2}, "number of <image> tags differs from the number of images"),
        (good | {"images": [7]}, "image is not a path"),
        (good | {"messages": said("<image>Is it?", "Yes", "And?")}, "roles out of order"),
        (good | {"messages": said("<image>Is it?", "Yes", roles=("assistant", "user"))}, "roles out of order"),
        (good | {"messages": []}, "roles out of order"),
        (good | {"messages": said("<image>", "Yes")}, "empty question"),
        (good | {"messages": said("<image>Is it?", " ")}, "empty answer"),
        (good | {"messages": said("<image>Is it <|im_end|>?", "Yes")}, "special token in the text"),
        (good | {"messages": said("<image>Is <box:0> it?", "Yes")}, "no box of this number"),
        (good | {"messages": said("<image>Is it \ud800?", "Yes")}, "not valid Unicode"),
        (good | {"messages": "text"}, "wrong columns"),
        (good | {OWN: "{"}, "wrong columns"),
        (good | {OWN: "{}"}, "broken extra keys"),
        ("text", "wrong columns"),
        (None, "wrong columns"),
        ({}, "wrong columns"),
    ]
    source = theirs(folder / "rows.jsonl", [row for row, _ in bad] + [good])
    source.write_bytes(b'{"messages": \n\xff\xfe\n' + b"[" * 100000 + b"\n" + source.read_bytes())
    records, rejections, _, _ = imported(source, "swift", root, "train", 0)
    assert [row.reason for row in rejections] == ["broken JSON"] * 3 + [reason for _, reason in bad]
    assert [row.row for row in rejections] == list(range(1, len(bad) + 4))
    assert [len(record.dialogues) for record in records] == [1]


def test_a_broken_sample_of_a_list_costs_itself_alone(pictures: Path, folder: Path) -> None:
    good = json.dumps({"messages": said("<image>Is it?", "Yes"), "images": ["a/1.png"]})
    for broken in ("[" * 100000, '{"messages": [', good[:-9], "nothing", "\udcff"):
        text = f"[{good}, {broken}, {good}, {good[:30]}"
        (folder / "list.json").write_bytes(text.encode(errors="surrogateescape"))
        records, rejections, _, _ = imported(folder / "list.json", "llamafactory", pictures, "train", 0)
        assert [len(record.dialogues) for record in records] == [2]
        assert [(row.row, row.reason) for row in rejections] == [(2, "broken JSON"), (4, "broken JSON")]


def test_files_that_cannot_be_read_as_a_whole_are_named(pictures: Path, folder: Path) -> None:
    for name, content, message in [
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.parquet", b"", "not a readable Parquet file"),
    ]:
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            import_rows(folder / name, "trl", pictures, "train", 0)
    with pytest.raises(InputError, match="no such file or folder"):
        import_rows(folder / "none", "trl", pictures, "train", 0)
    with pytest.raises(InputError, match=r"no \.tar file"):
        import_rows(folder, "webdataset", pictures, "train", 0)


def test_val_is_what_the_file_names_state_or_else_carved(pictures: Path, folder: Path) -> None:
    rows = [{"messages": said("<image>Is it?", "Yes"), "images": [image]} for image in IMAGES]
    theirs(folder / "one/SARChat_train.json", rows)
    records, *_ = imported(folder / "one", "sarchat", pictures, "test", 0.4)
    assert Counter(record.split for record in records) == {"train": 3, "val": 2}
    theirs(folder / "one/validation/count.json", rows[:1])
    records, *_ = imported(folder / "one", "sarchat", pictures, "test", 0.4)
    assert Counter(record.split for record in records) == {"train": 5, "val": 1}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["<image>", "a"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "conversations", "role", "from", "content", "value", "images", "image", "path", "type",
             "text", "objects", "bbox", "ref", "bbox_type", "prompt", "completion", "dialogues", "turns", OWN]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("name", BY_FILES)
def test_junk_never_crashes_and_is_counted(name: str, pictures: Path, folder: Path) -> None:
    good = {"messages": said("<image>Is it?", "Yes"), "images": ["a/1.png"]}
    there(name, [two_turns()], pictures, folder)
    source = folder / "junk.json"

    @FEW
    @given(
        st.lists(
            st.one_of(
                JUNK,
                st.builds(
                    good.__or__,
                    st.dictionaries(st.sampled_from(["messages", "images", "objects", OWN]), JUNK, max_size=2),
                ),
            )
        )
    )
    def check(rows: list) -> None:
        theirs(source, rows)
        records, rejections, _, _ = imported(source, name, pictures, "train", 0.1)
        accepted = sum(len(record.dialogues) for record in records)
        assert accepted + len(rejections) == len(rows)
        if records:
            write_data_folder(folder / "back", to_table(records), rejections, pictures, {})

    check()


def test_extra_keys_of_the_wrong_type_are_rejected(pictures: Path, folder: Path) -> None:
    there("llava", [two_turns()], pictures, folder)
    rows = json.loads((folder / "out/train.json").read_text())
    own = json.loads(rows[0][OWN])

    @FEW
    @given(st.sampled_from(sorted(own)), JUNK | st.just(2**40) | st.just(["a/1.png"]) | st.just("val"))
    def check(key: str, value: object) -> None:
        changed = theirs(folder / "changed.json", [rows[0] | {OWN: json.dumps(own | {key: value})}])
        records, rejections, _, _ = imported(changed, "llava", pictures, "train", 0)
        assert len(records) + len(rejections) == 1
        if records:
            write_data_folder(folder / "back", to_table(records), rejections, pictures, {})

    check()
    records, rejections, _, _ = imported(theirs(folder / "twice.json", rows * 2), "llava", pictures, "train", 0)
    assert [row.reason for row in rejections] == ["id used twice"] * 2 and len(records[0].dialogues) == 2


def test_shards_are_read_by_webdataset_and_are_the_same_every_time(pictures: Path, folder: Path) -> None:
    records = [two_turns(), Record(IMAGES[2:4], *SIZE, "pair", "train", dialogues=[
        Dialogue("x:9", "b", "others", [Turn("What changed?", "Nothing.")])])]  # fmt: skip
    there("webdataset", records, pictures, folder)
    shards = sorted((folder / "out").glob("*.tar"))
    first = [shard.read_bytes() for shard in shards]
    for path in pictures.rglob("*.png"):
        path.touch()
    export(folder / "data", "webdataset", folder / "out", pictures, list(SPLITS), None, 2)
    assert first == [shard.read_bytes() for shard in sorted((folder / "out").glob("*.tar"))]
    one, two = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("pil")
    assert one["json"]["images"] == ["a/1.png"] and np.array(one["png"]).shape[:2] == SIZE[::-1]
    assert two["json"]["dialogues"][0]["turns"] == [{"question": "What changed?", "answer": "Nothing."}]
    assert {"0.png", "1.tif"} <= two.keys()
    export(folder / "data", "webdataset", folder / "small", pictures, ["train"], None, 1)
    assert [path.name for path in sorted((folder / "small").glob("*.tar"))] == ["train-000000.tar", "train-000001.tar"]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **values: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in values.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def test_hostile_shards_write_nothing_outside_and_are_counted(pictures: Path, folder: Path) -> None:
    image = (pictures / "a/1.png").read_bytes()
    row = {"messages": said("<image>Is it?", "Yes")}
    secret = folder / "secret.png"
    secret.write_bytes(image)
    escaping = {"width": 1, "height": 1, "source": "", "split": "train", "dialogues": [{"turns": []}, {"turns": []}]}
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/a.tar", "w") as tar:
        add(tar, "fine.json", json.dumps(row).encode())
        add(tar, "fine.png", image)
        add(tar, "fine.cls", b"3")
        add(tar, "../up.json", json.dumps(row).encode())
        add(tar, "../up.png", image)
        add(tar, f"{folder}/absolute.json", json.dumps(row).encode())
        add(tar, f"{folder}/absolute.png", image)
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname=str(secret))
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "own.json", json.dumps(escaping | {"images": ["../own.png"]}).encode())
        add(tar, "own.png", image)
        add(tar, "text.json", json.dumps(escaping | {"images": ["text.html"]}).encode())
        add(tar, "text.png", image)
        add(tar, "bare.png", image)
        add(tar, "torn.json", b"{")
        add(tar, "deep.json", b"[" * 100000)
    with tarfile.open(folder / "shards/huge.tar", "w") as tar:
        add(tar, "huge.json")
    whole = (folder / "shards/huge.tar").read_bytes()
    member = tarfile.TarInfo("huge.json")
    member.size = 2**40
    (folder / "shards/huge.tar").write_bytes(member.tobuf() + whole[512:])
    manifest, left_out = import_folder(folder / "shards", "webdataset", folder / "back", None, "train", 0)
    assert manifest["accepted"] == 1 and manifest["read"] == 1 + sum(manifest["rejected"].values())
    assert manifest["rejected"] == {
        "path leaves the image root": 4,
        "not a plain file in the shard": 3,
        "not an image file": 2,
        "no JSON of a record for this key": 1,
        "broken JSON": 2,
        "file too large in the shard": 1,
        "shard is broken from here on (ReadError)": 1,
    }
    assert left_out == {".cls file of a shard": 1}
    inside = [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")]
    assert sorted(inside) == ["back_images/fine.png", "secret.png"]
    assert read_manifest(folder / "back")["image_root"] == str((folder / "back_images").resolve())


def test_damaged_shards_never_crash(pictures: Path, folder: Path) -> None:
    there("webdataset", [two_turns()], pictures, folder)
    (shard,) = (folder / "out").glob("*.tar")
    whole = shard.read_bytes()

    @settings(FEW, max_examples=60)
    @given(st.integers(0, 2500), st.binary(min_size=1, max_size=12), st.integers(0, len(whole)))
    def check(place: int, damage: bytes, length: int) -> None:
        changed = bytearray(whole)
        changed[place : place + len(damage)] = damage
        damaged = folder / "damaged.tar"
        damaged.write_bytes(changed[: length or None])
        with tempfile.TemporaryDirectory() as root:
            records, rejections, _, _ = imported(damaged, "webdataset", Path(root), "train", 0)
            if records:
                write_data_folder(folder / "back", to_table(records), rejections, Path(root), {})

    check()
    (folder / "torn.tar").write_bytes(whole[: whole.rindex(b"IEND") - 20])
    (folder / "torn").mkdir()
    records, rejections, _, _ = imported(folder / "torn.tar", "webdataset", folder / "torn", "train", 0)
    assert not records and [row.image for row in rejections] == ["000000000"]


@pytest.mark.parametrize("name", ["llamafactory", "swift"])
def test_a_reader_that_fixes_types_early_reads_what_comes_late(name: str, pictures: Path, folder: Path) -> None:
    many = [Dialogue(f"x:{number}", "b", "others", [Turn("Is it?", "Yes.")]) for number in range(60)]
    text = Record([], 0, 0, "text", "train", dialogues=[Dialogue("t", "b", "others", [Turn("?", "!")])])
    styled = Dialogue("s", "b", "description", [Turn("Describe.", "A port.")], "concise")
    records = [text, Record(["b/1.png"], *SIZE, "made", "train", dialogues=[*many, styled]), two_turns()]
    there(name, records, pictures, folder)
    for file, count in (("train.jsonl", 63), ("train_text.jsonl", 1)):
        files = {"data_files": str(folder / "out" / file), "cache_dir": str(folder / "cache"), "chunksize": 1000}
        assert len(load_dataset("json", **files)["train"]) == count


@pytest.mark.parametrize("name", ["trl", "trl_completion"])
def test_sft_trainer_takes_it(name: str, data: Path, sample: Path, tiny: Path, folder: Path) -> None:
    export(data, name, folder / "out", sample, ["train"], None, 9)
    rows = load_dataset("parquet", data_files=str(folder / "out/train.parquet"), cache_dir=str(folder / "c"))["train"]
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    processor = AutoProcessor.from_pretrained(tiny)
    arguments = SFTConfig(
        output_dir=str(folder / "run"), max_length=None, max_steps=1, per_device_train_batch_size=2, use_cpu=True,
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


def test_from_the_command_line(data: Path, sample: Path, folder: Path) -> None:
    told = run_script("data_prep/export.py", "--data", data, "--format", "llamafactory", "--out", folder / "sar 1")
    assert f"Export: {folder}/sar 1" in told and "train" in told
    info = json.loads((folder / "sar 1/dataset_info.json").read_text())
    assert info["sar_1_val"]["file_name"] == "val.jsonl" and set(info) == {"sar_1_train", "sar_1_val", "sar_1_test"}
    words = ["--source", folder / "sar 1", "--format", "llamafactory", "--image_root", sample]
    told = run_script("data_prep/import_records.py", *words, "--out", folder / "back")
    assert stored(folder / "back") == stored(data) and "rejected 0" in told
    told = run_script("data_prep/export.py", "--data", data, "--format", "cvs", "--out", folder / "x", code=2)
    assert "invalid choice" in told
    told = run_script("data_prep/import_records.py", *words[:-1], "/nowhere", "--out", folder / "x", code=2)
    assert "--image_root /nowhere: no such folder" in told and "Traceback" not in told
