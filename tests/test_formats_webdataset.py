import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import webdataset
from foreign_files import FEW, IMAGES, SIZE, imported, said, there, two_turns
from hypothesis import given, settings
from hypothesis import strategies as st

from sarlang_sft.formats.exporting import export
from sarlang_sft.formats.importing import import_folder
from sarlang_sft.records import (
    SPLITS,
    Dialogue,
    Record,
    Turn,
    read_manifest,
    to_table,
    write_data_folder,
)


def test_shards_are_read_by_webdataset_and_are_the_same_every_time(pictures: Path, tmp_path: Path) -> None:
    records = [two_turns(), Record(IMAGES[2:4], *SIZE, "pair", "train", dialogues=[
        Dialogue("x:9", "b", "others", [Turn("What changed?", "Nothing.")])])]  # fmt: skip
    there("webdataset", records, pictures, tmp_path)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    first = [shard.read_bytes() for shard in shards]
    for path in pictures.rglob("*.png"):
        path.touch()
    export(tmp_path / "data", "webdataset", tmp_path / "out", pictures, list(SPLITS), None, 2)
    assert first == [shard.read_bytes() for shard in sorted((tmp_path / "out").glob("*.tar"))]
    one, two = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("pil")
    assert one["json"]["images"] == ["a/1.png"] and np.array(one["png"]).shape[:2] == SIZE[::-1]
    assert two["json"]["dialogues"][0]["turns"] == [{"question": "What changed?", "answer": "Nothing."}]
    assert {"0.png", "1.tif"} <= two.keys()
    export(tmp_path / "data", "webdataset", tmp_path / "small", pictures, ["train"], None, 1)
    assert [path.name for path in sorted((tmp_path / "small").glob("*.tar"))] == [
        "train-000000.tar",
        "train-000001.tar",
    ]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **values: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in values.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def test_hostile_shards_write_nothing_outside_and_are_counted(pictures: Path, tmp_path: Path) -> None:
    image = (pictures / "a/1.png").read_bytes()
    row = {"messages": said("<image>Is it?", "Yes")}
    secret = tmp_path / "secret.png"
    secret.write_bytes(image)
    escaping = {"width": 1, "height": 1, "source": "", "split": "train", "dialogues": [{"turns": []}, {"turns": []}]}
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/a.tar", "w") as tar:
        add(tar, "fine.json", json.dumps(row).encode())
        add(tar, "fine.png", image)
        add(tar, "fine.cls", b"3")
        add(tar, "../up.json", json.dumps(row).encode())
        add(tar, "../up.png", image)
        add(tar, f"{tmp_path}/absolute.json", json.dumps(row).encode())
        add(tar, f"{tmp_path}/absolute.png", image)
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
    with tarfile.open(tmp_path / "shards/huge.tar", "w") as tar:
        add(tar, "huge.json")
    whole = (tmp_path / "shards/huge.tar").read_bytes()
    member = tarfile.TarInfo("huge.json")
    member.size = 2**40
    (tmp_path / "shards/huge.tar").write_bytes(member.tobuf() + whole[512:])
    manifest, left_out = import_folder(tmp_path / "shards", "webdataset", tmp_path / "back", None, "train", 0)
    assert manifest["accepted"] == 1 and manifest["read"] == 1 + sum(manifest["rejected"].values())
    assert manifest["rejected"] == {
        "path leaves the image root": 4,
        "not a plain file in the shard": 3,
        "not an image file": 2,
        "no JSON of a record for this key": 1,
        "broken JSON": 2,
        "file too large in the shard": 1,
        "shard is broken from here on": 1,
    }
    assert left_out == {".cls file of a shard": 1}
    inside = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")]
    assert sorted(inside) == ["back_images/fine.png", "secret.png"]
    assert read_manifest(tmp_path / "back")["image_root"] == str((tmp_path / "back_images").resolve())


def test_damaged_shards_never_crash(pictures: Path, tmp_path: Path) -> None:
    there("webdataset", [two_turns()], pictures, tmp_path)
    (shard,) = (tmp_path / "out").glob("*.tar")
    whole = shard.read_bytes()

    @settings(FEW, max_examples=60)
    @given(st.integers(0, 2500), st.binary(min_size=1, max_size=12), st.integers(0, len(whole)))
    def check(place: int, damage: bytes, length: int) -> None:
        changed = bytearray(whole)
        changed[place : place + len(damage)] = damage
        damaged = tmp_path / "damaged.tar"
        damaged.write_bytes(changed[: length or None])
        with tempfile.TemporaryDirectory() as root:
            records, rejections, _, _ = imported(damaged, "webdataset", Path(root), "train", 0)
            if records:
                write_data_folder(tmp_path / "back", to_table(records), rejections, Path(root), {})

    check()
    (tmp_path / "torn.tar").write_bytes(whole[: whole.rindex(b"IEND") - 20])
    (tmp_path / "torn").mkdir()
    records, rejections, _, _ = imported(tmp_path / "torn.tar", "webdataset", tmp_path / "torn", "train", 0)
    assert not records and [row.image for row in rejections] == ["000000000"]
