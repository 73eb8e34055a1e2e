"""Pairs of images and texts: what is read, what is true of what, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from sarlang_sft.contrastive.pairs import Pairs, make_pairs, read_csv_pairs, read_pairs
from sarlang_sft.errors import InputError
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder

CAPTIONS = {
    "a.png": ("MSTAR", "train", {"general": ["A tank.", "A SAR image of a tank."]}),
    "b.png": ("MSTAR", "test", {"general": ["A tank.", "One tank."], "complex": ["A tank on grass."]}),
    "c.png": ("SSDD", "test", {"general": ["A ship."], "complex": ["A ship at sea."]}),
    "d.png": ("SSDD", "test", {"general": ["A tank."]}),
    "e.png": ("SAMPLE", "test", {}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder whose images do not exist; each has a question, too, and one dialogue is of two images."""
    records = []
    for name, (source, split, texts) in CAPTIONS.items():
        spoken = [(subset, "description", text) for subset, some in texts.items() for text in some]
        spoken.append(("vqa1", "identification", "Yes."))
        dialogues = [
            Dialogue(f"{name}:{number}", subset, task, [Turn("What is it?", text)])
            for number, (subset, task, text) in enumerate(spoken)
        ]
        records.append(Record([name], 8, 8, source, split, dialogues=dialogues))
    change = Dialogue("two", "general", "description", [Turn("What has changed?", "Nothing.")])
    records.append(Record(["b.png", "c.png"], 8, 8, "MSTAR", "test", dialogues=[change]))
    (tmp_path / "root").mkdir()
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path / "root", {})
    return tmp_path / "data"


def listed(pairs: Pairs) -> set[tuple[str, str]]:
    return {(pairs.paths[i].name, pairs.texts[t]) for i, t in zip(pairs.image, pairs.text, strict=True)}


def some_pairs() -> Pairs:
    names, texts = ["x", "y", "x", "z", "y", "x"], ["one", "one", "two", "three", "one", "one"]
    return make_pairs([Path(name) for name in names], texts, ["source of " + name for name in names])


def test_equal_images_and_equal_texts_are_one_and_pairs_stay_as_they_were() -> None:
    pairs = some_pairs()
    assert pairs.paths == [Path("x"), Path("y"), Path("z")] and pairs.texts == ["one", "two", "three"]
    assert pairs.image.tolist() == [0, 1, 0, 2, 1, 0] and pairs.text.tolist() == [0, 0, 1, 2, 0, 0]
    assert pairs.sources == ["source of x", "source of y", "source of z"] and len(pairs) == 6
    assert pairs.of_image(0).tolist() == [0, 2, 5] and pairs.captions_of(0) == ["one", "two", "one"]
    assert pairs.of_image(1).tolist() == [1, 4] and pairs.captions_of(2) == ["three"]


def test_true_of_is_the_relation_for_any_choice_of_rows() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.integers(0, 12, 40), rng.integers(0, 9, 40)
    names = [Path(str(number)) for number in range(12)]
    pairs = Pairs(names, [str(number) for number in range(9)], image, text, [""] * 12)
    true = np.zeros((12, 9), bool)
    true[image, text] = True
    images, texts = rng.integers(0, 12, 30), rng.integers(0, 9, 20)
    assert np.array_equal(pairs.true_of(images, texts), true[np.ix_(images, texts)])
    assert true.any() and not true.all()
    assert np.array_equal(pairs.true_of(np.array([11]), np.array([8])), true[11:, 8:]), "the last of both"


def test_one_per_image_gives_every_image_one_of_its_own_pairs_and_in_time_all() -> None:
    pairs, rng = some_pairs(), np.random.default_rng(0)
    draws = np.array([pairs.one_per_image(rng) for _ in range(200)])
    assert np.array_equal(pairs.image[draws], np.tile([0, 1, 2], (200, 1)))
    assert set(draws.ravel().tolist()) == set(range(6))
    shares = [np.mean(draws[:, 0] == pair) for pair in (0, 2, 5)]
    assert all(0.2 < share < 0.47 for share in shares)


def test_among_keeps_every_pair_between_what_is_kept() -> None:
    pairs = make_pairs([Path(name) for name in "abcab"], ["s", "t", "u", "t", "s"], ["A", "B", "C", "A", "B"])
    fewer, rows = pairs.among(np.array([4, 3]))
    assert fewer.paths == [Path("a"), Path("b")] and fewer.texts == ["s", "t"] and fewer.sources == ["A", "B"]
    assert listed(fewer) == {("a", "s"), ("b", "t"), ("a", "t"), ("b", "s")}
    assert [(fewer.image[row], fewer.text[row]) for row in rows] == [(1, 0), (0, 1)]


def test_the_captions_of_a_split_are_read_and_nothing_else(folder: Path) -> None:
    pairs = read_pairs(folder, "test")
    named = {name: texts for name, (_, split, texts) in CAPTIONS.items() if split == "test"}
    assert listed(pairs) == {(name, text) for name, of in named.items() for some in of.values() for text in some}
    assert [path.name for path in pairs.paths] == ["b.png", "c.png", "d.png"]
    assert pairs.sources == ["MSTAR", "SSDD", "SSDD"]
    assert all(path.parent == folder.parent.resolve() / "root" for path in pairs.paths)
    assert listed(read_pairs(folder, "train")) == {("a.png", "A tank."), ("a.png", "A SAR image of a tank.")}


def test_sources_and_subsets_are_chosen(folder: Path) -> None:
    assert {name for name, _ in listed(read_pairs(folder, "test", leave_out=["MSTAR"]))} == {"c.png", "d.png"}
    assert {name for name, _ in listed(read_pairs(folder, "test", only=["MSTAR"]))} == {"b.png"}
    both = read_pairs(folder, "test", subsets=["complex"], leave_out=["MSTAR"])
    assert listed(both) == {("c.png", "A ship at sea.")}
    only_in_test = read_pairs(folder, "train", leave_out=["SSDD"])
    assert len(only_in_test) == 2, "a source of another split may be left out"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"leave_out": ["MSTR"]}, "leave_out MSTR: no source of .*MSTAR, SAMPLE, SSDD"),
        ({"only": ["ship"]}, "only ship: no source"),
        ({"subsets": ["vqa1"]}, r"subsets vqa1: .*\(test\) has no captions of it; it has complex, general"),
        ({"only": ["SAMPLE"]}, "no captions of single images with only SAMPLE; take in other sources"),
        ({"leave_out": ["MSTAR", "SSDD"], "subsets": ["general"]}, "with leave_out MSTAR SSDD; take in"),
        ({"image_root": "/nowhere"}, "--image_root"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, options: dict[str, list[str]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_pairs(folder, "test", **options)


def test_a_split_without_captions_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match="split val has no captions of single images; convert it with captions"):
        read_pairs(folder, "val")
    with pytest.raises(InputError, match="splits are train, val, test"):
        read_pairs(folder, "tst")


def test_an_image_of_a_data_folder_never_leaves_its_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    said = [Dialogue("0", "general", "description", [Turn("What is it?", "A ship.")])]
    records = to_table([Record(["../secret.png"], 8, 8, "SSDD", "test", dialogues=said)])
    write_data_folder(tmp_path / "data", records, [], tmp_path / "root", {})
    with pytest.raises(InputError, match=r"secret.png: leaves the image root"):
        read_pairs(tmp_path / "data", "test")


def test_a_csv_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    content = 'imgpath,caption\nA/1.png,"A ship, and a tank."\n./A/1.png,"Two ""lines""\nof text"\n\nB/2.png,船。\n'
    for name, encoding in (("bom.csv", "utf-8-sig"), ("plain.csv", "utf-8")):
        (tmp_path / name).write_text(content, encoding=encoding)
        pairs = read_csv_pairs(tmp_path / name, tmp_path)
        assert [str(path.relative_to(tmp_path.resolve())) for path in pairs.paths] == ["A/1.png", "B/2.png"]
        assert pairs.texts == ["A ship, and a tank.", 'Two "lines"\nof text', "船。"]
        assert pairs.image.tolist() == [0, 0, 1] and pairs.sources == [name.removesuffix(".csv")] * 2
    (tmp_path / "more.csv").write_text("id,caption,imgpath\n7,A ship.,a.png\n")
    assert listed(read_csv_pairs(tmp_path / "more.csv", tmp_path)) == {("a.png", "A ship.")}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"filepath,title\na.png,A ship.\n",
            "no column `imgpath` but filepath, title; the header must be imgpath,cap",
        ),
        (b"imgpath\tcaption\na.png\tA ship.\n", "no column `imgpath`"),
        (b"", "no column `imgpath` but none"),
        (b"imgpath,caption\n", "holds no pairs"),
        (b"imgpath,caption\na.png,A ship.\nb.png\n", "line 3: the image or the caption is empty"),
        (b"imgpath,caption\na.png,\n", "line 2: the image or the caption is empty"),
        (b'imgpath,caption\na.png,"A\nship."\n\n ,A ship.\n', "line 5: the image or the caption is empty"),
        (b"imgpath,caption\na.png,A ship, and a tank.\n", "line 2: has more fields than the header; .*double quotes"),
        (b"imgpath,caption\na.png,A ship.\n../b.png,A tank.\n", "line 3: ../b.png: leaves the image root"),
        (b"imgpath,caption\n/etc/passwd,A ship.\n", "line 2: /etc/passwd: leaves the image root"),
        (b"imgpath,caption\nlink/b.png,A ship.\n", "line 2: link/b.png: leaves the image root"),
        (b"imgpath,caption\na\0.png,A ship.\n", "line 2: |is no CSV file"),
        (b"imgpath,caption\na.png,\xff\xfe\n", "is no CSV file in UTF-8"),
    ],
)
def test_a_csv_that_is_none_of_pairs_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        read_csv_pairs(tmp_path / "pairs.csv", tmp_path / "root")
    assert "pairs.csv" in str(error.value)


def test_a_csv_or_root_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs.csv: is no CSV file"):
        read_csv_pairs(tmp_path / "pairs.csv", tmp_path)
    (tmp_path / "pairs.csv").write_text("imgpath,caption\na.png,A ship.\n")
    with pytest.raises(InputError, match=r"image_root .*nowhere: no such folder"):
        read_csv_pairs(tmp_path / "pairs.csv", tmp_path / "nowhere")
