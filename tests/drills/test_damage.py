"""What disks, people and other runs do to an output folder."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drills.runs import Drill, check_usable
from sarlang_sft.checkpoints import SEAL
from sarlang_sft.errors import STOPPED_EXIT


@pytest.fixture(scope="module")
def whole(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """A run that nobody disturbed, with its checkpoints 8 and 12."""
    drill = Drill(tiny, data, tmp_path_factory.mktemp("damage") / "whole", {"max_steps": 12})
    drill.finish()
    return drill


def copy_of(whole: Drill, out: Path, **options: object) -> Drill:
    """The run as it was when it had written its last checkpoint and was killed."""
    out.mkdir()
    for name in ("checkpoint-8", "checkpoint-12"):
        shutil.copytree(whole.out / name, out / name)
    run = json.loads((whole.out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "state": "running"}))
    return Drill(whole.model, whole.data, out, {**whole.options, **options}, whole.ranks)


def assert_same_end(drill: Drill, whole: Drill) -> None:
    reference = whole.adapter()
    assert drill.losses() == whole.losses()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in drill.adapter().items())


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (flip, "adapter_model.safetensors", "adapter_model.safetensors is damaged (its checksum differs)"),
        (cut, "optimizer.pt", "optimizer.pt has "),
        (Path.unlink, SEAL, f"is no complete checkpoint ({SEAL} is missing)"),
    ],
)
def test_a_broken_checkpoint_is_left_out_and_the_one_before_is_used(
    damage: object, name: str, message: str, whole: Drill, tmp_path: Path
) -> None:
    drill = copy_of(whole, tmp_path / "broken")
    damage(drill.out / "checkpoint-12" / name)
    output = drill.finish()
    assert f"Left out: {drill.out}/checkpoint-12: {message}" in output
    assert f"Resuming from {drill.out}/checkpoint-8" in output
    check_usable(drill.out)
    assert_same_end(drill, whole)


def test_what_a_killed_run_left_half_written_is_removed(whole: Drill, tmp_path: Path) -> None:
    drill = copy_of(whole, tmp_path / "half")
    shutil.move(drill.out / "checkpoint-12", drill.out / ".checkpoint-12.part")
    (drill.out / ".checkpoint-12.part" / SEAL).unlink()
    assert f"Resuming from {drill.out}/checkpoint-8" in drill.finish()
    assert_same_end(drill, whole)
    assert not list(drill.out.glob(".checkpoint*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds two checkpoints of the drill and not three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_last_complete_checkpoint(whole: Drill, small_disk: Path) -> None:
    drill = Drill(whole.model, whole.data, small_disk / "run", whole.options)
    output = drill.finish(code=2)
    assert "checkpoint-12 cannot be written" in output and "checkpoint-8 is the last complete checkpoint" in output
    assert re.search(r"0\.\d MB are free there", output)
    assert "Traceback" not in output and not list(drill.out.glob(".checkpoint*"))
    check_usable(drill.out)
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    drill.finish()
    assert_same_end(drill, whole)


def test_a_second_run_in_one_output_folder_refuses(whole: Drill, tmp_path: Path) -> None:
    drill = Drill(whole.model, whole.data, tmp_path / "shared", {**whole.options, "max_steps": 400})
    first = drill.start()
    first.wait_for("'loss'")
    output = drill.finish(code=2)
    assert f"output_dir {drill.out}: process {first.process.pid} on" in output and "trains there now" in output
    first.kill()
    drill.options["max_hours"] = 1e-5
    drill.finish(code=STOPPED_EXIT)


def other_base(drill: Drill, tmp_path: Path) -> str:
    shutil.copytree(drill.model, tmp_path / "other")
    flip(tmp_path / "other/model.safetensors")
    drill.model = tmp_path / "other"
    return "base model: "


def newer_version(drill: Drill, tmp_path: Path) -> str:
    seal = drill.out / "checkpoint-12" / SEAL
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "version": 99}))
    return "was written by a newer version of this project (format 99, known is 1); update the project"


def no_checkpoint(drill: Drill, tmp_path: Path) -> str:
    drill.options["resume"] = drill.model
    return f"resume {drill.model}: cannot be used: {drill.model}: is no complete checkpoint"


def truncated_data(drill: Drill, tmp_path: Path) -> str:
    shutil.copytree(drill.data, tmp_path / "cut")
    cut(tmp_path / "cut/train.parquet")
    drill.data = tmp_path / "cut"
    return "train.parquet"


@pytest.mark.parametrize("what", [other_base, newer_version, no_checkpoint, truncated_data])
def test_what_cannot_go_on_is_refused_before_anything_is_written(what: object, whole: Drill, tmp_path: Path) -> None:
    drill = copy_of(whole, tmp_path / "refused")
    message = what(drill, tmp_path)
    before = listing(drill.out)
    output = drill.finish(code=2)
    assert message in output and "Traceback" not in output and "Loading weights" not in output, output
    assert listing(drill.out) == before


def test_a_read_only_output_folder_is_refused(whole: Drill, tmp_path: Path) -> None:
    drill = Drill(whole.model, whole.data, Path("/proc/version_of_nothing/run"), whole.options)
    if not os.path.isdir("/proc"):
        pytest.skip("needs a folder that nobody can write, such as Linux' /proc")
    output = drill.finish(code=2)
    assert f"output_dir {drill.out}: cannot be written" in output and "Loading weights" not in output
