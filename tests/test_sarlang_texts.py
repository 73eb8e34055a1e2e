"""Text files of the release in the mess of the real world: nothing crashes, and no row is lost without a reason."""

import csv
import io
import json
import os
import random
import zipfile
import zlib
from pathlib import Path

import pytest
from conftest import run_script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sarlang_sft import sarlang_counts
from sarlang_sft.errors import InputError
from sarlang_sft.image_lookup import ImageFolder, NoImageError, stem_of
from sarlang_sft.records import read_records, to_records, write_data_folder
from sarlang_sft.sarlang import CLASS_PREFIX, POSITION_PREFIX, Prompts, convert
from sarlang_sft.sarlang_counts import PUBLISHED, Published, compare_with_published, count_beside_published
from sarlang_sft.sarlang_texts import PARTS, Row, TextFile, find_text_files, read_rows, write_texts

VQA = PARTS["sarvqa1train"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6)
NOISE = st.one_of(
    st.binary(max_size=40),
    st.text('",\n\r \\{}[]:<>messages0', max_size=40).map(str.encode),
    st.sampled_from([b'"', b'a,b,"c', b"\x00", b'{"messages": [', b'{"a":' + b"[" * 5000, b"9" * 5000]),
    st.sampled_from([b"\xff\xfe", b'"\\ud800"', b"null", b"{}", b'{"images": [0], "messages": [{}, {}]}']),
)
GOOD = [(f"{number:07d}.png", f"Is there, say, a ship {number}?", "Yes.") for number in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that examples write their files to, one after another."""
    return tmp_path_factory.mktemp("texts")


def rows_of(path: Path) -> list[Row]:
    rows = list(read_rows(TextFile(VQA, path)))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return rows


def fields(rows: list[Row]) -> list[tuple]:
    """Of the usable rows, the image without the folder that JSON files put before it."""
    return [(row.image.removeprefix("SARimages/"), row.question, row.answer) for row in rows if not row.problem]


@given(ROWS)
def test_whatever_is_written_as_csv_or_json_is_read_back(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([(" Image Name", "Question ", "Answer"), *rows])
    (folder / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    samples = [
        {"messages": [{"role": "user", "content": f"<image>{q}"}, {"role": "assistant", "content": a}], "images": [i]}
        for i, q, a in rows
    ]
    (folder / "x.json").write_text(json.dumps(samples), encoding="utf-8")
    (folder / "lines.json").write_text("\n".join(map(json.dumps, samples)), encoding="utf-8")
    stripped = [tuple(part.strip() for part in row) for row in rows]
    untagged = [(image, question.replace("<image>", "").strip(), answer) for image, question, answer in stripped]
    assert fields(rows_of(folder / "x.csv")) == stripped
    assert fields(rows_of(folder / "x.json")) == fields(rows_of(folder / "lines.json")) == untagged


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@given(st.integers(0, len(GOOD) - 1), NOISE)
def test_a_broken_row_costs_no_other_row(folder: Path, suffix: str, place: int, noise: bytes) -> None:
    write_texts(folder, "good", GOOD)
    whole = (folder / f"good{suffix}").read_bytes()
    lines = whole.split(b"\r\n") if b"\r\n" in whole else whole.split(b"\n")
    if suffix == ".json":
        items = [json.dumps(item).encode() for item in json.loads(whole)]
        items[place] = noise.replace(b'{"messages"', b"")
        broken = b"[" + b",\n".join(items) + b"]"
    else:
        lines[place + 1] = noise
        broken = b"\n".join(lines)
    (folder / f"broken{suffix}").write_bytes(broken)
    rows = rows_of(folder / f"broken{suffix}")
    found = fields(rows)
    lost = [row for number, row in enumerate(GOOD) if number != place and row not in found]
    # noise that ends inside quotes can take its neighbour along; then the row that holds both says so or shows it
    held = [row for row in rows if row.problem or any(row.image in one or one[0] in row.answer for one in lost)]
    assert len(lost) <= len(held) and len(lost) <= 1


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@given(st.data())
def test_a_file_cut_off_anywhere_keeps_the_rows_before(folder: Path, suffix: str, data: st.DataObject) -> None:
    write_texts(folder, "good", GOOD)
    whole = (folder / f"good{suffix}").read_bytes()
    (folder / f"cut{suffix}").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    rows = rows_of(folder / f"cut{suffix}")
    complete = [row for row in fields(rows) if row in GOOD]
    assert complete == GOOD[: len(complete)] and len(rows) <= len(complete) + 1


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_noise_through_the_whole_conversion_is_counted(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(0)
    root = tmp_path / "release"
    Image.new("L", (32, 32)).save(tmp_path / "0000001.png")
    for _ in range(12):
        write_texts(root, "SARVQA1_train", [("0000001.png", "Is there a ship?", "Yes.")] * 40)
        path = root / f"SARVQA1_train{suffix}"
        text = bytearray(path.read_bytes())
        for _ in range(10):
            text[rng.randrange(len(text))] = rng.randrange(256)
        path.write_bytes(text)
        (root / ("SARVQA1_train.json" if suffix == ".csv" else "SARVQA1_train.csv")).unlink()
        conversion = convert(root, tmp_path, 0, Prompts())
        manifest = write_data_folder(tmp_path / "data", *conversion[:2], tmp_path, conversion.inputs)
        assert manifest["read"] == manifest["accepted"] + sum(manifest["rejected"].values()) >= 30
        kept = [dialogue for record in read_records(tmp_path / "data", "train") for dialogue in record.dialogues]
        assert len(kept) == manifest["accepted"]


def test_two_damaged_rows_do_not_swallow_those_between_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('1.png,Is it?,"open\n2.png,Is it?,two\n3.png,Is it?,three"\n4.png,Is it?,four\n')
    rows = rows_of(tmp_path / "x.csv")
    assert [(row.image, row.problem) for row in rows[:1]] == [("1.png", "unbalanced quote")]
    assert [row[2] for row in fields(rows)] == ["two", 'three"', "four"]
    (tmp_path / "x.csv").write_text("".join(f'{number}.png,Is it?,"""\n' for number in range(200)))
    assert [row.problem for row in rows_of(tmp_path / "x.csv")] == ["unbalanced quote"] * 200


def sampled(image: object, **first: object) -> str:
    messages = [{"role": "user", "content": "<image>Is it?"}, {"role": "assistant", "content": "Yes."}]
    return json.dumps({**first, "messages": messages, "images": image})


def test_json_in_several_lists_and_with_other_keys_first_loses_no_sample(tmp_path: Path) -> None:
    good, torn = sampled(["1.png"]), sampled(["1.png"])[:50]
    for text, read, usable in (
        (f"[{good},{good}]\n[{good}]", 3, 3),
        (f"[{torn},{sampled(['1.png'], task='z')},{sampled(['1.png'], mine={'id': 1})}]", 3, 2),
        (f"[{good},{torn}\n,{good}]", 3, 2),
        (f"[{sampled('0009787.jpg')}]", 1, 1),
        (f"[{sampled([])},{sampled([1])},{good}]", 3, 1),
        ("[" + ",".join([good] * 9000) + "," + '{"a": [' + ",".join([good] * 9000), 18001, 18000),
    ):
        (tmp_path / "x.json").write_text(text)
        rows = rows_of(tmp_path / "x.json")
        assert (len(rows), len(fields(rows))) == (read, usable)
    (tmp_path / "x.json").write_text(f"[{sampled('0009787.jpg')}]")
    assert rows_of(tmp_path / "x.json")[0].image == "0009787.jpg"


def test_headers_in_any_order_with_other_columns_or_none_at_all(tmp_path: Path) -> None:
    expected = [("1.png", "Is it?", "Yes.")]
    for text in (
        "1.png,Is it?,Yes.\n",
        "\ufeff Image Name , Question , Answer\r\n1.png,Is it?,Yes.\r\n",
        ",answer,QUESTION,Image_Name\n0,Yes.,Is it?,1.png\n",
        '"Image Name","Question","Answer"\n\n"1.png", "Is it?", "Yes."',
    ):
        (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
        assert fields(rows_of(tmp_path / "x.csv")) == expected
    (tmp_path / "x.csv").write_text("")
    assert rows_of(tmp_path / "x.csv") == []


def test_images_are_named_by_their_stem_whatever_the_path_and_suffix() -> None:
    assert {stem_of(f"{place}SV_Darwin_-12.4278_130.8688{suffix}") for place in ("", "a/b/", "C:\\x\\", "../")
            for suffix in ("", ".png", ".TIF", ".jpg", ".bmp")} == {"sv_darwin_-12.4278_130.8688"}  # fmt: skip


def pack(sample: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((sample / "Text").rglob("*.*")):
            archive.write(path, path.relative_to(sample))
    return target


def test_the_archive_itself_gives_the_same_records(sample: Path, tmp_path: Path) -> None:
    expected = convert(sample, sample, 0.1, Prompts())
    archive = pack(sample, tmp_path / "Text.zip")
    assert convert(archive, sample, 0.1, Prompts()).records.equals(expected.records)
    below = convert(tmp_path, sample, 0.1, Prompts())
    assert below.records.equals(expected.records) and list(below.inputs) == ["Text.zip"]
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked/SARVQA1_train.json").write_bytes((sample / "Text/VQA/train/SARVQA1_train.json").read_bytes())
    assert find_text_files(tmp_path)[VQA][0].member is None, "what lies unpacked is read"
    output = run_script(
        "data_prep/convert_sarlang.py", "--root", archive, "--image_root", sample, "--out", tmp_path / "data"
    )
    assert "Text.zip/Text/VQA/test/SARVQA1_test.csv holds the same rows" in output and "Simulated scenes" in output


def test_a_damaged_archive_is_named(sample: Path, tmp_path: Path) -> None:
    archive = pack(sample, tmp_path / "Text.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"Text\.zip: not a whole zip archive .* download it again"):
        convert(archive, sample, 0, Prompts())
    middle = len(whole) // 3
    for damage in (bytes(200), b"\xff" * 8, bytes(range(40))):
        archive.write_bytes(whole[:middle] + damage + whole[middle + len(damage) :])
        with pytest.raises(InputError, match="download it again"):
            convert(archive, sample, 0, Prompts())
    with pytest.raises(InputError, match=r"give the folder of the release, or its Text\.zip"):
        convert(sample / "truth.json", sample, 0, Prompts())


def test_names_that_are_no_unicode_are_rejected_wherever_they_stand(tmp_path: Path) -> None:
    root = tmp_path / "release"
    write_texts(root, "SARVQA1_train", [("1.png", "Is it?", "Yes.")] * 2)
    for name in (b"1.png", b"A\xe9.png"):
        Image.new("L", (32, 32)).save(os.path.join(os.fsencode(root), name))
    (root / "SARVQA1_train.json").unlink()
    (root / "SARVQA1_train.csv").write_bytes(b"A\xe9.png,Is it?,Yes.\nB\xe9.png,Is it?,Yes.\n1.png,Is it?,Yes.\n")
    output = run_script("data_prep/convert_sarlang.py", "--root", root, "--out", tmp_path / "data")
    assert "rejected: not UTF-8 text 2" in output and "accepted 1" in output


def test_what_the_archives_of_other_systems_call_a_file_is_understood(tmp_path: Path, sample: Path) -> None:
    with zipfile.ZipFile(tmp_path / "Text.zip", "w") as archive:
        content = (sample / "Text/VQA/train/SARVQA1_train.csv").read_bytes()
        archive.writestr(zipfile.ZipInfo("x"), "")
        archive.writestr("Text\\VQA\\train\\SARVQA1_train.csv", content)
    records = convert(tmp_path / "Text.zip", sample, 0, Prompts()).records
    assert next(to_records(records)).dialogues[0].id == "SARVQA1_train:1"


@pytest.mark.parametrize(
    "option", ["--vqa_prompt={question}<|im_end|>", "--caption_prompt=<image>Say", "--caption_prompt="]
)
def test_prompts_that_break_every_sample_are_refused(option: str, sample: Path, tmp_path: Path) -> None:
    words = ["--root", sample, "--out", tmp_path / "data", *option.split("=")]
    output = run_script("data_prep/convert_sarlang.py", *words, code=2)
    assert f"{option.split('=')[0]} " in output and "chat templates" in output


def test_links_out_of_the_root_are_refused_or_left_aside(sample: Path, tmp_path: Path) -> None:
    root = tmp_path / "release"
    root.mkdir()
    (root / "SARVQA1_train.csv").symlink_to(sample / "Text/VQA/train/SARVQA1_train.csv")
    with pytest.raises(InputError, match=r"SARVQA1_train\.csv: is a link out of --root"):
        convert(root, sample, 0, Prompts())
    (root / "SARVQA1_train.csv").unlink()
    write_texts(root, "SARVQA1_train", [("SIM_000000.png", "Is there a ship?", "Yes.")])
    (root / "SARimages").symlink_to(sample / "SARimages")
    output = run_script("data_prep/convert_sarlang.py", "--root", root, "--out", tmp_path / "data", code=2)
    assert "SARimages': a link to a folder, not followed" in output and "path leaves the image root" in output


def test_broken_huge_and_elongated_images_are_rejected_by_their_header(tmp_path: Path) -> None:
    root = tmp_path / "release"
    root.mkdir()
    Image.new("L", (30, 20)).save(root / "good.png")
    good = (root / "good.png").read_bytes()
    header = good[12:16] + (60_000).to_bytes(4, "big") * 2 + good[24:29]
    (root / "bomb.png").write_bytes(good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_bytes(b"not found")
    (root / "cut.tif").write_bytes(b"II*\x00\x08\x00\x00\x00")
    Image.new("L", (402, 2)).save(root / "long.png")
    names = ["good", "bomb", "empty", "text", "cut", "long", "gone"]
    write_texts(root, "SARVQA1_train", [(f"{name}.png", "Is there a ship?", "Yes.") for name in names])
    records, rejections, _ = convert(root, root, 0, Prompts())
    assert [record.images for record in to_records(records)] == [["good.png"]]
    assert {Path(rejection.image).stem: rejection.reason for rejection in rejections} == {
        "bomb": "image too large", "empty": "image unreadable", "text": "image unreadable", "cut": "image unreadable",
        "long": "image too elongated", "gone": "image not found",
    }  # fmt: skip


def test_json_and_csv_that_disagree_are_said_and_fatal_when_strict(tmp_path: Path) -> None:
    root = tmp_path / "release"
    rows = [("1.png", f"Is there a ship, number {number}?", "Yes.") for number in range(5)]
    write_texts(root, "SARVQA1_train", rows)
    Image.new("L", (32, 32)).save(root / "1.png")
    path = root / "SARVQA1_train.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]))
    words = ["data_prep/convert_sarlang.py", "--root", root, "--out", tmp_path / "data"]
    assert "SARVQA1_train.csv holds the same rows" in run_script(*words), "the order does not count"
    path.write_text("\n".join([header, *lines[:3], lines[0]]))
    assert "DISAGREES: 2 rows only in the first, 1 only in the second" in run_script(*words)
    output = run_script(*words, "--strict", code=2)
    assert "--strict: JSON and CSV disagree: SARVQA1_train.json" in output


def test_counts_stand_beside_the_published_ones(tmp_path: Path) -> None:
    root = tmp_path / "release"
    (root / "Text").mkdir(parents=True)
    Image.new("L", (32, 32)).save(root / "0000001.png")
    Image.new("L", (32, 32)).save(root / "SN6_Rotterdam_1.png")
    questions = ["How many ships are in the image?", "What shape are the pools?", "Why is the port busy?"]
    write_texts(root / "Text", "SARVQA2_train", [("0000001.png", question, "2.") for question in questions])
    write_texts(root / "Text", "Caption_test1", [("SN6_Rotterdam_1.tif", None, "A port."), ("7.png", None, "A port.")])
    counts = count_beside_published(convert(root, root, 0.5, Prompts()).records)
    assert {count.published.name.strip(): count.here for count in counts if count.here} == {
        "texts": 4, "captions, test, concise": 1, "questions, train": 3, "SARVQA2 (inferred)": 3, "counting": 1,
        "others": 2, "shape": 1, "reasoning": 1, "images": 2, "SpaceNet6": 1, "SARDet-100K": 1,
        "images with captions, test": 1,
    }  # fmt: skip
    words = ["data_prep/convert_sarlang.py", "--root", root, "--out", tmp_path / "data"]
    output = run_script(*words, "--strict", code=2)
    assert "questions, train -955,369" in output and not (tmp_path / "data").exists()
    (root / "unused.png").write_bytes((root / "0000001.png").read_bytes())
    output = run_script(*words)
    assert "questions, train                  955,372          3    -955,369" in output
    assert (
        "1 images that texts name were not found (such as '7')" in output and "1 images are named by no text" in output
    )
    assert sum(one.number for one in PUBLISHED if one.where.keys() == {"task"}) + 45_650 == PUBLISHED[0].number


def test_strict_lets_pass_what_only_our_rules_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "0000001.png")
    write_texts(tmp_path, "SARVQA1_train", [("0000001.png", "Is there a ship?", "Yes.")])
    records = convert(tmp_path, tmp_path, 0, Prompts()).records
    of_files, by_rule = Published("texts", 1, {}), Published("ships", 7, {"task": "counting"}, by_rule=True)
    monkeypatch.setattr(sarlang_counts, "PUBLISHED", [of_files, by_rule])
    compare_with_published(records, strict=True)
    monkeypatch.setattr(sarlang_counts, "PUBLISHED", [of_files._replace(number=2), by_rule])
    with pytest.raises(InputError, match=r"texts -1; nothing was written"):
        compare_with_published(records, strict=True)


def test_test_captions_have_the_style_of_their_file_and_each_style_its_prompt(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "0000001.png")
    long = "The image shows a port. Ships lie at two piers."
    for name in ("Caption_train", "Caption_test", "Caption_test1"):
        write_texts(tmp_path, name, [("0000001.png", None, "A port."), ("0000001.png", None, long)])
    records = convert(tmp_path, tmp_path, 0, Prompts("Short:", "Long:")).records
    found = {
        record.split: [(d.style, d.turns[0].question) for d in record.dialogues] for record in to_records(records)
    }
    assert found == {
        "train": [("concise", "Short:"), ("complex", "Long:")],
        "test": [("complex", "Long:")] * 2 + [("concise", "Short:")] * 2,
    }


def test_a_class_list_that_is_there_already_is_not_put_twice_and_does_not_hide_the_task(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "0000001.png")
    questions = [f"{POSITION_PREFIX} Where are most ships?", f"{CLASS_PREFIX} How many ships?", "How many ships?"]
    write_texts(tmp_path, "SARVQA1_train", [("0000001.png", question, "2.") for question in questions])
    prompts = Prompts(vqa="{question}", class_prefix="always")
    [record] = to_records(convert(tmp_path, tmp_path, 0, prompts).records)
    assert [(d.task, d.turns[0].question) for d in record.dialogues] == [
        ("positioning", questions[0]), ("counting", questions[1]), ("counting", questions[1]),
    ]  # fmt: skip


def test_an_absolute_path_below_the_root_is_that_file(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32)).save(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert [folder.locate(f"{tmp_path}/{name}") for name in ("a/1.png", "b/a/1.png")] == ["a/1.png", "b/a/1.png"]
    assert folder.locate("C:\\them\\b\\a\\1.jpg") == "b/a/1.png"
    with pytest.raises(NoImageError, match="several images of this name"):
        folder.locate("a/1.tif")
