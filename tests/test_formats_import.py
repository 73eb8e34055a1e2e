import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from foreign_files import FEW, IMAGES, SIZE, imported, said, spoken, theirs, there, two_turns
from hypothesis import given
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.formats.importing import import_rows
from sarlang_sft.formats.rows import OWN
from sarlang_sft.formats.table import IMPORTABLE
from sarlang_sft.records import (
    Box,
    Rejection,
    Turn,
    to_table,
    write_data_folder,
)

BY_FILES = [name for name, form in IMPORTABLE.items() if not form.brings_images]


def test_rows_by_others_come_in_with_guessed_tasks_one_record_per_image(pictures: Path, tmp_path: Path) -> None:
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
    source = theirs(tmp_path / "all.jsonl", rows)
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


def test_the_other_shapes_of_a_row_mean_the_same(pictures: Path, tmp_path: Path) -> None:
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
    source = theirs(tmp_path / "rows.json", rows)
    records, rejections, _, _ = imported(source, "trl", pictures, "train", 0)
    assert [turn for dialogue in records[0].dialogues for turn in dialogue.turns] == [Turn("How many?", "2")] * 4
    assert len(records) == 1 and not rejections
    records, rejections, _, _ = imported(source, "llava", pictures, "train", 0)
    assert [row.reason for row in rejections] == ["number of <image> tags differs from the number of images"]


def test_boxes_of_others_become_boxes(pictures: Path, tmp_path: Path) -> None:
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
    records, rejections, _, _ = imported(theirs(tmp_path / "a.jsonl", rows), "swift", pictures, "train", 0)
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
    ((record,), _, _, _) = imported(theirs(tmp_path / "b.json", rows), "sarchat", pictures, "train", 0)
    assert record.boxes == [Box("", [39, 26, 8, 18])]
    assert [(d.task, d.turns) for d in record.dialogues] == [
        ("grounding", [Turn("Locate 1 aircraft.", "<box:0> (bottom right)")]),
        ("others", [Turn("[strange] Is it?", "Yes")]),
    ]


def test_bad_rows_are_rejected_with_reasons(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
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
    source = theirs(tmp_path / "rows.jsonl", [row for row, _ in bad] + [good])
    source.write_bytes(b'{"messages": \n\xff\xfe\n' + b"[" * 100000 + b"\n" + source.read_bytes())
    records, rejections, _, _ = imported(source, "swift", root, "train", 0)
    assert [row.reason for row in rejections] == ["broken JSON"] * 3 + [reason for _, reason in bad]
    assert [row.row for row in rejections] == list(range(1, len(bad) + 4))
    assert [len(record.dialogues) for record in records] == [1]


def test_a_broken_sample_of_a_list_costs_itself_alone(pictures: Path, tmp_path: Path) -> None:
    good = json.dumps({"messages": said("<image>Is it?", "Yes"), "images": ["a/1.png"]})
    for broken in ("[" * 100000, '{"messages": [', good[:-9], "nothing", "\udcff"):
        text = f"[{good}, {broken}, {good}, {good[:30]}"
        (tmp_path / "list.json").write_bytes(text.encode(errors="surrogateescape"))
        records, rejections, _, _ = imported(tmp_path / "list.json", "llamafactory", pictures, "train", 0)
        assert [len(record.dialogues) for record in records] == [2]
        assert [(row.row, row.reason) for row in rejections] == [(2, "broken JSON"), (4, "broken JSON")]


def test_files_that_cannot_be_read_as_a_whole_are_named(pictures: Path, tmp_path: Path) -> None:
    for name, content, message in [
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.parquet", b"", "not a readable Parquet file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            import_rows(tmp_path / name, "trl", pictures, "train", 0)
    with pytest.raises(InputError, match="no such file or folder"):
        import_rows(tmp_path / "none", "trl", pictures, "train", 0)
    with pytest.raises(InputError, match=r"no \.tar file"):
        import_rows(tmp_path, "webdataset", pictures, "train", 0)


def test_val_is_what_the_file_names_state_or_else_carved(pictures: Path, tmp_path: Path) -> None:
    rows = [{"messages": said("<image>Is it?", "Yes"), "images": [image]} for image in IMAGES]
    theirs(tmp_path / "one/SARChat_train.json", rows)
    records, *_ = imported(tmp_path / "one", "sarchat", pictures, "test", 0.4)
    assert Counter(record.split for record in records) == {"train": 3, "val": 2}
    theirs(tmp_path / "one/validation/count.json", rows[:1])
    records, *_ = imported(tmp_path / "one", "sarchat", pictures, "test", 0.4)
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
def test_junk_never_crashes_and_is_counted(name: str, pictures: Path, tmp_path: Path) -> None:
    good = {"messages": said("<image>Is it?", "Yes"), "images": ["a/1.png"]}
    there(name, [two_turns()], pictures, tmp_path)
    source = tmp_path / "junk.json"

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
            write_data_folder(tmp_path / "back", to_table(records), rejections, pictures, {})

    check()


def test_extra_keys_of_the_wrong_type_are_rejected(pictures: Path, tmp_path: Path) -> None:
    there("llava", [two_turns()], pictures, tmp_path)
    rows = json.loads((tmp_path / "out/train.json").read_text())
    own = json.loads(rows[0][OWN])

    @FEW
    @given(st.sampled_from(sorted(own)), JUNK | st.just(2**40) | st.just(["a/1.png"]) | st.just("val"))
    def check(key: str, value: object) -> None:
        changed = theirs(tmp_path / "changed.json", [rows[0] | {OWN: json.dumps(own | {key: value})}])
        records, rejections, _, _ = imported(changed, "llava", pictures, "train", 0)
        assert len(records) + len(rejections) == 1
        if records:
            write_data_folder(tmp_path / "back", to_table(records), rejections, pictures, {})

    check()
    records, rejections, _, _ = imported(theirs(tmp_path / "twice.json", rows * 2), "llava", pictures, "train", 0)
    assert [row.reason for row in rejections] == ["id used twice"] * 2 and len(records[0].dialogues) == 2


def test_boxes_of_another_image_are_no_boxes_of_the_first(pictures: Path, tmp_path: Path) -> None:
    objects = {"ref": ["ship"], "bbox": [[10, 10, 30, 30]]}
    row = {"messages": said("<image><image>Find it.", "<bbox>"), "images": ["a/1.png", "b/1.png"]}
    rows = [row | {"objects": objects | {"image_id": [number]}} for number in (0, 1)]
    records, rejections, _, _ = imported(theirs(tmp_path / "a.jsonl", rows), "swift", pictures, "train", 0)
    assert [record.boxes for record in records] == [[Box("ship", [10, 10, 20, 20])]]
    assert [row.reason for row in rejections] == ["box of another image than the first"]


def test_texts_without_image_are_records_of_their_own(pictures: Path, tmp_path: Path) -> None:
    rows = [{"messages": said(f"What is {number}?", "A number.")} for number in range(5)]
    records, *_ = imported(theirs(tmp_path / "a.jsonl", rows), "llamafactory", pictures, "train", 0)
    assert [len(record.dialogues) for record in records] == [1] * 5
