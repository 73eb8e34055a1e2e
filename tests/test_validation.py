import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run_script
from corruptions import (
    COMES_WITH,
    CORRUPTIONS,
    OF_NO_IMAGE,
    WITH_ANOTHER,
    Folder,
    asked,
    findings_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.findings import KINDS, Finding, write_findings
from sarlang_sft.records import (
    Dialogue,
    Record,
    Turn,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_every_kind_has_a_corruption() -> None:
    assert set(KINDS) - set(CORRUPTIONS) == {"strongly_resized"}  # for a backbone only, below


@pytest.mark.parametrize("kind", CORRUPTIONS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(choice=st.data())
def test_a_corruption_is_found_and_nothing_else_is(kind: str, choice: st.DataObject) -> None:
    alone = kind in ("duplicate_image", "duplicate_id")  # the last record has no other in its split
    with TemporaryDirectory() as place:
        victim = choice.draw(st.integers(0, 4 if alone else 5))
        folder = Folder(Path(place).resolve() / "root", victim, choice.draw)
        CORRUPTIONS[kind](folder)
        found = findings_of(folder.write())
        assert {one.finding for one in found} - COMES_WITH.get(kind, set()) == {kind}, found
        if kind in WITH_ANOTHER:  # the second of the two is reported
            assert all(one.image in {image for record in folder.records for image in record.images} for one in found)
        elif kind not in OF_NO_IMAGE:
            assert {(one.split, one.image) for one in found} == {(folder.record.split, folder.record.images[0])}


def test_the_sample_and_the_clean_folder_have_no_finding(data: Path, tmp_path: Path) -> None:
    assert findings_of(Folder(tmp_path, 0, None).write()) == []
    assert findings_of(data) == []


def test_pairs_texts_alone_and_long_talks_are_no_finding(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0, None)
    first, second, third, *_ = folder.records
    start = Turn("What is it?", "A ship.")
    talks = [
        Dialogue(f"talk {number}", "vqa2", "others", [start, Turn("Where?", answer)])
        for number, answer in enumerate(["Left of the pier.", "At sea."])
    ]
    compared = asked("pair", "cross_identification", "Is <box:0> in both?", "Yes.")
    folder.records += [
        replace(first, images=[*first.images, *second.images], dialogues=talks),
        replace(first, images=[*first.images, *third.images], dialogues=[compared]),
        Record([], 0, 0, "texts", "train", dialogues=[asked("text", "others", "What is sigma0?", "A ratio.")]),
        Record([], 0, 0, "texts", "train", dialogues=[asked("text 2", "others", "What is a look?", "A part.")]),
    ]
    assert findings_of(folder.write()) == []


def test_what_is_not_there_stops_nothing(tmp_path: Path) -> None:
    data = Folder(tmp_path, 0, None).write()
    table = pq.read_table(data / "train.parquet")
    rows = table.to_pylist()
    rows[0] |= {"images": None, "boxes": [None, {"label": None, "points": None}], "source": None, "width": None}
    rows[1] |= {"dialogues": None, "boxes": None}
    rows[2]["dialogues"] = [None, {"id": None, "task": "others", "turns": [None, {"question": None, "answer": "A."}]}]
    pq.write_table(table.from_pylist(rows, schema=table.schema), data / "train.parquet")
    assert {one.finding for one in findings_of(data)} == {
        "unusable_box", "no_dialogues", "duplicate_id", "unknown_task", "empty_text", "manifest_counts",
    }  # fmt: skip


def test_what_scripts_and_people_are_told(
    data: Path, tinies: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = runpy.run_path(str(ROOT / "data_prep/validate.py"))["main"]
    out = tmp_path / "findings.jsonl"

    def validate(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["validate.py", "--workers", "1", "--out", *map(str, (out, *words))])
        return main(), capsys.readouterr().out

    code, output = validate("--data", data, "--model", tinies["qwen2_5_vl"])
    assert code == 0 and out.read_text() == ""
    assert "fit to train on (0 errors, 0 warnings, 0 notes" in output
    assert "uint8 40" in output and "tokens per image (quantiles): 0% 16" in output

    folder = Folder(tmp_path / "root", 3, None)
    folder.says("What is the shape of the circular pond?", "Circular.\x1b[2J")
    code, output = validate("--data", folder.write())
    assert code == 0 and "fit to train on (0 errors, 1 warning" in output and "\x1b" not in output
    assert validate("--data", tmp_path / "root/data", "--strict")[0] == 1
    folder.path.unlink()
    output = run_script("data_prep/validate.py", "--data", tmp_path / "root/data", "--out", out, code=1)
    assert "test noise 1" in output and "such as images/3.png: no such file" in output
    assert "Verdict: mend this before you train (1 error" in output
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == {
        "finding": "missing_image", "severity": "error", "split": "test", "source": "noise", "image": "images/3.png",
        "dialogue": None, "detail": "no such file",
    }  # fmt: skip
    assert (second["finding"], second["dialogue"]) == ("control_characters", "3:new")


def torn(data: Path) -> None:
    path = data / "test.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def rotten(data: Path) -> None:
    path = data / "test.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:400] = bytes(396)
    path.write_bytes(bytes(whole))


def other_columns(data: Path) -> None:
    pq.write_table(pq.read_table(data / "val.parquet").drop_columns("boxes"), data / "val.parquet")


def more_columns(data: Path) -> None:
    table = pq.read_table(data / "val.parquet")
    pq.write_table(table.append_column("mine", table["width"]), data / "val.parquet")


def change_manifest(text: str) -> Callable[[Path], object]:
    return lambda data: (data / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torn, "test.parquet: is no whole parquet file"),
        (rotten, "test.parquet: is no whole parquet file"),
        (lambda data: (data / "train.parquet").unlink(), "train.parquet does not exist"),
        (other_columns, "has no column boxes"),
        (more_columns, "another type: mine"),
        (lambda data: (data / "manifest.json").unlink(), "manifest.json is missing"),
        (change_manifest("[1"), "no valid JSON"),
        (change_manifest("[]"), "no `image_root`"),
        (change_manifest('{"read": 3, "accepted": "3", "image_root": "."}'), "no `accepted`"),
        (
            change_manifest('{"read": 3, "accepted": 3, "rejected": {"a": "b"}, "counts": {}, "image_root": "."}'),
            "no `rejected`",
        ),
        (
            change_manifest('{"read": 3, "accepted": 3, "rejected": {}, "counts": {"train": 3}, "image_root": "."}'),
            "no `counts`",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    data = Folder(tmp_path, 0, None).write()
    change(data)
    with pytest.raises(InputError, match=message):
        findings_of(data)


def test_findings_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> None:
        yield Finding("missing_image", "no such file", "train")
        raise InputError("in the middle")

    with pytest.raises(InputError, match="in the middle"):
        write_findings(broken(), tmp_path / "findings.jsonl")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is a folder"):
        write_findings([], tmp_path)


def test_the_page_lists_every_finding() -> None:
    page = (ROOT / "docs/validation.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {kind.severity} | {kind.meaning} | {kind.remedy} |" for name, kind in KINDS.items()]
    assert "\n".join(rows) in page
