"""Complete checkpoints: sealed, checked, rotated."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from sarlang_sft.checkpoints import (
    SEAL,
    BrokenCheckpointError,
    check_checkpoint,
    last_complete,
    list_checkpoints,
    new_checkpoint,
    read_seal,
    remove_left_overs,
    rotate_checkpoints,
)
from sarlang_sft.errors import InputError
from sarlang_sft.ranks import Ranks
from sarlang_sft.whole_output import CannotWriteError

ALONE = Ranks(timedelta(seconds=60))


def write(out: Path, *steps: int) -> None:
    for step in steps:
        with new_checkpoint(out, step, {"who": "test"}, ALONE) as building:
            (building / "weights").write_bytes(b"abc" * step)
            (building / "shards").mkdir()
            (building / "shards/0").write_text(str(step))


def test_a_checkpoint_knows_its_step_its_files_and_its_facts(tmp_path: Path) -> None:
    write(tmp_path, 12)
    seal = check_checkpoint(tmp_path / "checkpoint-12")
    assert seal.step == 12 and seal.facts == {"who": "test"} and set(seal.files) == {"weights", "shards/0"}
    assert seal.files["weights"][0] == 36 and [path.name for path in tmp_path.iterdir()] == ["checkpoint-12"]


def test_what_fails_in_between_leaves_no_trace_and_the_one_of_before(tmp_path: Path) -> None:
    write(tmp_path, 4)
    lost = pytest.raises(CannotWriteError, match=r"checkpoint-8 cannot be written .*checkpoint-4 is the last complete")
    with lost, new_checkpoint(tmp_path, 8, {}, ALONE) as building:
        (building / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="not of the disk"), new_checkpoint(tmp_path, 8, {}, ALONE):
        raise RuntimeError("not of the disk")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_one_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "checkpoint-4/weights").write_text("damaged")
    write(tmp_path, 4)
    check_checkpoint(tmp_path / "checkpoint-4")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"abd" * 4), r"weights is damaged"),
        (lambda folder: (folder / "weights").write_bytes(b""), r"weights has 0 bytes, not 12"),
        (lambda folder: (folder / "shards/0").unlink(), r"shards/0 is missing"),
        (lambda folder: (folder / "optimizer.pt").touch(), r"optimizer.pt was not written with it"),
        (lambda folder: (folder / SEAL).write_text("[]"), rf"{SEAL} cannot be read"),
        (lambda folder: (folder / SEAL).write_bytes(b"\xff"), rf"{SEAL} cannot be read"),
        (lambda folder: (folder / SEAL).unlink(), "is no complete checkpoint"),
    ],
)
def test_damage_is_found_and_named(damage: object, message: str, tmp_path: Path) -> None:
    write(tmp_path, 4)
    damage(tmp_path / "checkpoint-4")
    with pytest.raises(BrokenCheckpointError, match=message):
        check_checkpoint(tmp_path / "checkpoint-4")


def test_hidden_files_of_file_systems_are_no_damage(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "checkpoint-4/.nfs0001").touch()
    (tmp_path / "checkpoint-4/shards/.DS_Store").touch()
    check_checkpoint(tmp_path / "checkpoint-4")


def test_the_last_complete_one_is_not_just_the_last(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "missing") is None
    write(tmp_path, 4, 8, 12)
    (tmp_path / "checkpoint-16").mkdir()
    (tmp_path / "checkpoint-12/weights").unlink()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-8"


def test_a_newer_format_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    write(tmp_path, 4)
    seal = tmp_path / "checkpoint-4" / SEAL
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "version": 2}))
    with pytest.raises(InputError, match="newer version") as refused:
        read_seal(tmp_path / "checkpoint-4")
    assert not isinstance(refused.value, BrokenCheckpointError)


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(None, None, [16, 12, 8, 4]), (0, None, [16, 12, 8, 4]), (1, None, [16]), (2, None, [16, 12]), (1, 8, [16, 8]),
     (2, 4, [16, 4]), (3, 4, [16, 12, 4]), (2, 99, [16, 12])],
)  # fmt: skip
def test_rotation_keeps_the_newest_and_the_best(
    limit: int | None, best: int | None, kept: list[int], tmp_path: Path
) -> None:
    write(tmp_path, 4, 8, 12, 16)
    rotate_checkpoints(tmp_path, limit, best and tmp_path / f"checkpoint-{best}")
    assert list_checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in kept]


def test_rotation_does_not_count_broken_ones(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-12").mkdir()
    rotate_checkpoints(tmp_path, 1, None)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_only_left_overs_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 4)
    for name in (".checkpoint-8.part", ".checkpoint-2.old", ".checkpoint-notes", "left-checkpoint-12-1"):
        (tmp_path / name).mkdir()
    remove_left_overs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", ".checkpoint-notes", "left-checkpoint-12-1"}
