"""Output folders: what is replaced, and what never."""

import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT, run_script
from PIL import Image

from sarlang_sft.errors import InputError
from sarlang_sft.records import DATA_FOLDER, count_dialogues, read_manifest, read_records, write_data_folder
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.sarlang_texts import write_texts
from sarlang_sft.whole_output import CannotWriteError, check_replaceable, whole_file, whole_folder


@pytest.mark.parametrize("foreign", ["images/1.png", "src/main.js", "notes.txt", ".git/config"])
def test_what_others_put_into_a_data_folder_is_never_deleted(foreign: str, sample: Path, tmp_path: Path) -> None:
    records = convert(sample, sample, 0.1, Prompts()).records
    write_data_folder(tmp_path / "data", records, [], sample, {})
    (tmp_path / "data" / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / foreign).write_text("precious")
    with pytest.raises(InputError, match=rf"also holds '{foreign.split('/')[0]}', which would be deleted"):
        write_data_folder(tmp_path / "data", records, [], sample, {})
    assert (tmp_path / "data" / foreign).read_text() == "precious"


def test_a_release_is_never_replaced_by_what_is_made_of_it(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run_script("data_prep/convert_sarlang.py", "--root", sample, "--out", out)
    (sample / "Text").rename(out / "Text")
    try:
        words = ["--root", out, "--image_root", sample, "--out", out]
        output = run_script("data_prep/convert_sarlang.py", *words, code=2)
        assert "also holds 'Text', which would be deleted" in output and (out / "Text/VQA").is_dir()
    finally:
        (out / "Text").rename(sample / "Text")


def test_findings_stay_out_of_the_way_of_a_new_conversion(sample: Path, tmp_path: Path) -> None:
    records = convert(sample, sample, 0.1, Prompts()).records
    for rejected in range(2):
        write_data_folder(tmp_path / "data", records, [], sample, {"round": str(rejected)})
        (tmp_path / "data/findings.jsonl").write_text("")
    assert read_manifest(tmp_path / "data")["inputs"] == {"round": "1"}


def test_places_that_cannot_be_replaced_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place, message in (
        (Path("."), "cannot be replaced as a whole"),
        (Path("/proc"), "cannot be replaced as a whole"),
        (Path("x" * 300), "cannot be used"),
        (ROOT / "README.md", "is a file"),
        (ROOT / "docs", "holds other things"),
    ):
        with pytest.raises(InputError, match=message):
            check_replaceable(place, DATA_FOLDER)
    with pytest.raises(CannotWriteError, match="cannot be written"), whole_folder(Path("/proc/nothing/data")):
        pass
    with pytest.raises(InputError, match="is a folder"), whole_file(ROOT / "docs"):
        pass


def test_a_linked_file_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/x").write_text("old")
    (tmp_path / "x").symlink_to(tmp_path / "disk/x")
    with whole_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").is_symlink() and (tmp_path / "disk/x").read_text() == "new"
    with pytest.raises(RuntimeError), whole_file(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "disk/x").read_text() == "new" and len(list((tmp_path / "disk").iterdir())) == 1


def test_what_killed_programs_leave_is_no_foreign_file(sample: Path, tmp_path: Path) -> None:
    records = convert(sample, sample, 0.1, Prompts()).records
    write_data_folder(tmp_path / "data", records, [], sample, {})
    for name in (".findings.jsonl.part", ".DS_Store"):
        (tmp_path / "data" / name).write_text("")
    write_data_folder(tmp_path / "data", records, [], sample, {})


def test_links_in_a_circle_and_devices_are_named(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(InputError, match="cannot be"), whole_folder(tmp_path / "one"):
        pass
    Image.new("L", (32, 32)).save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "2.png")
    write_texts(tmp_path, "SARVQA1_train", [(f"{number}.png", "Is it?", "Yes.") for number in (1, 2)])
    _, rejections, _ = convert(tmp_path, tmp_path, 0, Prompts())
    assert [rejection.reason for rejection in rejections] == ["image unreadable"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no plain file"), whole_file(tmp_path / "pipe"):
        pass


def test_a_linked_folder_is_replaced_where_it_lies_and_others_may_read_it(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/data")
    for fraction in (0.1, 0.5):
        write_data_folder(tmp_path / "link", convert(sample, sample, fraction, Prompts()).records, [], tmp_path, {})
    assert (tmp_path / "link").is_symlink() and len(list(read_records(tmp_path / "disk/data", "val"))) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]
    assert (tmp_path / "disk/data").stat().st_mode & 0o777 == 0o755


def test_a_full_disk_leaves_the_old_folder_and_is_named(sample: Path, tmp_path: Path) -> None:
    words = ["data_prep/convert_sarlang.py", "--root", sample, "--out", tmp_path / "data"]
    run_script(*words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    finished = subprocess.run(
        [sys.executable, *map(str, words), "--val_fraction", "0.5"], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert finished.returncode == 2, finished.stderr
    assert "cannot be written" in finished.stderr and "what was there is unchanged" in finished.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "nothing half-written stays"


def write_for_ever(out: Path, tables: list[pa.Table]) -> None:
    while True:
        for table in tables:
            write_data_folder(out, table, [], out.parent, {})


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(sample: Path, tmp_path: Path) -> None:
    tables = [convert(sample, sample, fraction, Prompts()).records for fraction in (0.1, 0.5)]
    expected = [count_dialogues(table) for table in tables]
    out = tmp_path / "data"
    write_data_folder(out, tables[0], [], tmp_path, {})
    rng = random.Random(0)
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(out, tables))
        process.start()
        before, deadline = (out / "manifest.json").stat().st_mtime_ns, time.monotonic() + 60
        while (out / "manifest.json").stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid, 9)
        process.join()
        assert (out / "manifest.json").stat().st_mtime_ns != before, "it was replaced at least once"
        counts = read_manifest(out)["counts"]
        assert counts in expected
        rows = [len(record.dialogues) for split in ("train", "val", "test") for record in read_records(out, split)]
        assert sum(rows) == read_manifest(out)["accepted"]
