"""Training from shards: what a folder gives, each shard once, whole or not at all, and a store's failures told."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from conftest import ROOT, make_trainer, run_here, run_script
from counted_store import CountedStore
from drills.runs import Drill, kill_at_random
from foreign_files import IMAGES, SIZE, stored
from PIL import Image
from test_resume import history, stop_in, weights
from torch.utils.data import DataLoader

from sarlang_sft import object_store
from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.bad_images import BAD_IMAGES, ReadableCollator
from sarlang_sft.checkpoints import last_complete
from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.formats.exporting import export
from sarlang_sft.formats.importing import import_folder
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import read_image
from sarlang_sft.lengths import Lengths
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, Mixture, parse_sources, read_mixture
from sarlang_sft.object_store import redact
from sarlang_sft.packing import Layout, PlannedRows
from sarlang_sft.read_ahead import ReadAhead
from sarlang_sft.records import (
    Dialogue,
    Record,
    Turn,
    image_root_of,
    to_table,
    write_data_folder,
)
from sarlang_sft.run_facts import find_differences
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.shard_order import Dealing, plan_shard_epochs
from sarlang_sft.shard_writing import write_sharded
from sarlang_sft.shards import data_folder, read_index, read_shards_of
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.validation import check_manifest
from sarlang_sft.whole_output import CannotWriteError


@pytest.fixture(scope="module")
def written(sample: Path, data: Path) -> Path:
    """The sample's data folder in shards of a few images."""
    out = sample.parent / "in_shards"
    write_sharded(data, out, sample, 30_000, seed=0)
    return out


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[CountedStore]:
    """A store that knows of nothing yet; nothing fetched before is remembered, and pauses are short."""
    CountedStore.start(tmp_path / "opened.log")
    data_folder.cache_clear()
    read_index.cache_clear()
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.001)
    return CountedStore


def source(written: Path, cache: Path, gigabytes: float = 1.0) -> DataSource:
    return DataSource(f"counted://{written}", shard_cache=str(cache), shard_cache_gb=gigabytes)


def pixels(root: Path, image: str) -> np.ndarray:
    return read_image(path_inside(root, image))


def first_image(written: Path, shard: str) -> str:
    """The name of an image in this shard."""
    numbers = [one["name"] for one in json.loads((written / "manifest.json").read_text())["shards"]]
    index = pq.read_table(written / "shards.parquet").to_pylist()
    return next(row["image"] for row in index if row["shard"] == numbers.index(shard))


def test_shards_hold_the_same_records_and_the_same_pixels(pictures: Path, tmp_path: Path) -> None:
    def record(images: list[str], number: int, split: str = "train") -> Record:
        turns = [Turn("What is it?", f"A ship {number}.")]
        return Record(images, *SIZE, "x", split, dialogues=[Dialogue(f"d{number}", "a", "others", turns)])

    pair, alone = record(IMAGES[1:3], 8), record([], 9)
    records = [*(record([image], number) for number, image in enumerate(IMAGES)), pair, alone]
    records += [record([IMAGES[0]], 10, "test"), record(["gone.png"], 11, "val")]
    write_data_folder(tmp_path / "data", to_table(records), [], pictures, {})
    manifest = write_sharded(tmp_path / "data", tmp_path / "shards", pictures, 5000, seed=0)
    assert manifest["rejected"] == {"image not found": 1} and manifest["read"] == manifest["accepted"] + 1 == 9
    assert stored(tmp_path / "shards") == sorted(records[:-1], key=repr)
    assert "gone.png" in (tmp_path / "shards/rejected.jsonl").read_text()
    root = image_root_of(tmp_path / "shards", None)
    for image in IMAGES:
        assert np.array_equal(pixels(root, image), pixels(pictures, image))
    table = read_mixture([DataSource(str(tmp_path / "shards"))], "train")
    shard = dict(zip(map(tuple, table["images"].to_pylist()), table["shard"].to_pylist(), strict=True))
    assert len(set(shard.values())) > 2 and shard[()] == -1
    assert shard[tuple(IMAGES[1:3])] == shard[IMAGES[1],] == shard[IMAGES[2],], "what shares an image stays together"
    tars = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    keys = [
        set(item) - {"__key__", "__url__", "__local_path__"}
        for item in webdataset.WebDataset(tars, shardshuffle=False)
    ]
    assert len(keys) == 8 and {"json", "0.jpg", "1.png"} in keys and {"json"} in keys
    import_folder(tmp_path / "shards", "webdataset", tmp_path / "back", None, "train", 0)
    assert stored(tmp_path / "back") == sorted(records[:-1], key=repr)
    again = write_sharded(tmp_path / "data", tmp_path / "again", pictures, 5000, seed=0)
    assert again["shards"] == manifest["shards"] and again["files"] == manifest["files"]
    for refusing in (
        lambda: write_sharded(tmp_path / "shards", tmp_path / "x", pictures, 5000, seed=0),
        lambda: export(tmp_path / "shards", "llava", tmp_path / "x", pictures, ["train"], None, 1),
        lambda: check_manifest(tmp_path / "shards"),
    ):
        with pytest.raises(InputError, match="its images lie in shards; give the folder that"):
            refusing()


def write_grey(folder: Path, names: list[str]) -> Path:
    """A data folder of pictures of one size in bytes, the first black, each next one lighter."""
    for number, name in enumerate(names):
        file = path_inside(folder / "images", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * number % 256, np.uint8)).save(file)
    records = [
        Record([name], 8, 8, "x", "train", dialogues=[Dialogue(name, "a", "others", [Turn("?", "A ship.")])])
        for name in names
    ]
    write_data_folder(folder / "data", to_table(records), [], folder / "images", {})
    return folder / "data"


def test_images_are_found_by_any_way_of_writing_their_names(tmp_path: Path) -> None:
    names = ["./a/0.bmp", "a/../a/1.bmp", "a//2.bmp"]
    write_sharded(write_grey(tmp_path, names), tmp_path / "shards", tmp_path / "images", 1, seed=0)
    root = image_root_of(tmp_path / "shards", None)
    assert [pixels(root, name).max() for name in names] == [0, 40, 80]
    found = read_shards_of(tmp_path / "shards")
    assert len({found.place_of(name).shard for name in names}) == 3, "as fetching ahead asks"


def test_shards_that_are_written_anew_show_no_other_images(tmp_path: Path) -> None:
    names = [f"{number}.bmp" for number in range(6)]
    data = write_grey(tmp_path, names)
    for seed in range(2):
        write_sharded(data, tmp_path / "shards", tmp_path / "images", 10**6, seed)
        root = image_root_of(tmp_path / "shards", None)
        assert [pixels(root, name).max() for name in names] == [0, 40, 80, 120, 160, 200]


def test_records_of_one_image_go_with_the_shard_that_it_is_read_from(tmp_path: Path) -> None:
    names = [f"{number // 8}.bmp" for number in range(40)]
    write_sharded(write_grey(tmp_path, names), tmp_path / "shards", tmp_path / "images", 3000, seed=0)
    table = read_mixture([DataSource(str(tmp_path / "shards"))], "train")
    found = read_shards_of(tmp_path / "shards")
    lies = [found.place_of(images[0]).shard for images in table["images"].to_pylist()]
    assert table["shard"].to_pylist() == lies and len(set(lies)) > 2


def make_rows(written: Path, cache: Path, dealing: Dealing | None = None) -> PlannedRows:
    """An epoch from the store, one image a row, shard by shard, as one rank of several machines reads it."""
    table = read_mixture([source(written, cache)], "train")
    shard, record = table["shard"].to_numpy(), table["record"].to_numpy()
    firsts = np.unique(record, return_index=True)[1]
    rows = [[np.array([first])] for first in sorted(firsts, key=lambda first: shard[first])]
    dealing = dealing or Dealing(shard, ranks=1, batch=1, window=2)
    return PlannedRows(table, [rows], True, 0, ReadAhead(table, dealing, here=True))


def read_all(rows: list) -> list[np.ndarray]:
    dialogues = [tree[0] for row in rows for tree in row]
    return [pixels(Path(dialogue["image_root"]), dialogue["images"][0]) for dialogue in dialogues]


@pytest.mark.parametrize("workers", [0, 3])
def test_each_shard_is_fetched_once_however_many_workers_read(
    workers: int, written: Path, sample: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    rows = make_rows(written, tmp_path / "cache")
    read = [picture for batch in DataLoader(rows, 1, num_workers=workers, collate_fn=read_all) for picture in batch]
    names = [row[0][0]["images"][0] for row in rows]
    assert all(np.array_equal(picture, pixels(sample, name)) for picture, name in zip(read, names, strict=True))
    expected = {path.name for path in written.glob("train*.tar")}
    assert len(expected) >= 6 and store.opened() == dict.fromkeys(expected, 1)
    assert store.opened(".parquet") == dict.fromkeys(
        ["train.parquet", "val.parquet", "test.parquet", "shards.parquet"], 1
    )


def test_each_of_two_machines_fetches_its_own_shards_and_no_others(
    written: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    one = source(written, tmp_path / "cache")
    table = read_mixture([one], "train")
    size = len(table)
    count = [np.full(size, tokens, dtype=np.int64) for tokens in (64, 70, 20)]
    lengths = Lengths(table["record"].to_numpy(), *count, np.ones(size, dtype=bool))
    dealing, layout = Dealing(table["shard"].to_numpy(), 2, 1, window=2), Layout(True, 500, None, 2)
    epochs = plan_shard_epochs(Mixture([one], table), lengths, [], layout, 0, 1, dealing)
    fetched, names = [], []
    for rank in range(2):
        data_folder.cache_clear()
        read_index.cache_clear()
        store.start(tmp_path / f"machine{rank}.log")
        table = read_mixture([source(written, tmp_path / f"machine{rank}")], "train")
        rows = PlannedRows(table, epochs, True, 0, ReadAhead(table, dealing, here=True))
        for place in range(rank, len(rows), 2):
            read_all([rows[place]])
            names += [dialogue["id"] for tree in rows[place] for dialogue in tree]
        fetched.append(store.opened())
    assert fetched[0].keys() | fetched[1].keys() == {path.name for path in written.glob("train*.tar")}
    assert not fetched[0].keys() & fetched[1].keys() and {*fetched[0].values(), *fetched[1].values()} == {1}
    assert sorted(names) == sorted(table["id"].to_pylist())


def test_the_next_shards_are_fetched_before_they_are_needed(
    written: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    rows = make_rows(written, tmp_path / "cache")
    end = time.monotonic() + 60
    rows[0]  # which reads no image
    while len(store.opened()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(store.opened()) == ["train-000000.tar", "train-000001.tar"], "a window of two, and nothing behind it"


def test_the_cache_keeps_its_limit_and_forgets_what_was_unused_for_longest(
    written: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    sizes = sorted(path.stat().st_size for path in written.glob("train*.tar"))
    limit = 3.5 * sizes[-1] / 1e9
    folder = source(written, tmp_path / "cache", limit).folder
    root = image_root_of(folder, None)
    images = [first_image(written, f"train-00000{number}.tar") for number in range(6)]
    for image in [*images[:3], images[0], images[3]]:
        pixels(root, image)
        time.sleep(0.01)
    fetched = {path.name for path in (folder / "fetched").glob("*.tar")}
    assert "train-000000.tar" in fetched and "train-000001.tar" not in fetched and "train-000003.tar" in fetched
    for image in images * 3:
        pixels(root, image)
        assert sum(path.stat().st_size for path in (folder / "fetched").iterdir()) <= limit * 1e9
    with pytest.raises(
        InputError, match=r"shard_cache_gb .*: the ranks of this machine need up to .* lower shard_window"
    ):
        make_rows(written, tmp_path / "cache")
        read_shards_of(folder).check_room(6)


def test_a_program_that_names_no_limit_leaves_that_of_a_training(
    written: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    one = source(written, tmp_path / "cache", 0.5)
    assert data_folder(one.path, one.shard_cache) == one.folder
    assert read_shards_of(one.folder).limit == 0.5e9
    data_folder.cache_clear()
    read_index.cache_clear()
    assert read_shards_of(data_folder(one.path, one.shard_cache)).limit == 0.5e9


def test_failing_stores_are_asked_again_after_growing_pauses(
    written: Path, sample: Path, store: type[CountedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(object_store.time, "sleep", pauses.append)
    store.answers = {"manifest.json": ["refused", "well"], "train.parquet": ["damaged", "cut", "well"]}
    store.answers["train-000000.tar"] = ["refused", "cut", "damaged", "gone", "well"]
    root = image_root_of(source(written, tmp_path / "cache").folder, None)
    image = first_image(written, "train-000000.tar")
    assert np.array_equal(pixels(root, image), pixels(sample, image))
    assert len(pauses) == 1 + 2 + 4 and store.opened() == {"train-000000.tar": 5}
    assert all(1.1 * one < other for one, other in pairwise(pauses[3:])), pauses


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("damaged", "its checksum differs"), ("cut", "bytes, not"), ("gone", "FileNotFound"), ("refused", "was refused")],
)
def test_a_shard_that_cannot_be_had_leaves_out_its_images_by_name_and_reason_within_the_limit(
    answer: str, reason: str, written: Path, tiny: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    store.answers = {"train-000000.tar": [answer]}
    rows = make_rows(written, tmp_path / "cache")
    root = Path(rows.dialogues[0]["image_root"])
    images = [row[0][0]["images"][0] for row in rows]
    of_shard = [image for image in images if read_name(root, image) == "train-000000.tar"]
    backbone = BACKBONES["qwen2_5_vl"]
    processor = load_processor(str(tiny), backbone)
    collator = ReadableCollator(TreeCollator(processor, backbone, []), tmp_path / "out", len(of_shard))
    kept = collator(list(rows))["images"]
    assert len(of_shard) > 1 and not {*of_shard} & {*kept} and len(kept) + len(of_shard) == len(rows)
    lines = [json.loads(line) for line in (tmp_path / "out" / BAD_IMAGES).read_text().splitlines()]
    assert {line["image"] for line in lines} == {str(root / image) for image in of_shard}
    assert all(reason in line["reason"] and "train-000000.tar" in line["reason"] for line in lines)
    assert "secret" not in str(lines) and "token=abc" not in str(lines)
    assert store.opened()["train-000000.tar"] == object_store.ATTEMPTS, "not again for every image"
    strict = ReadableCollator(TreeCollator(processor, backbone, []), tmp_path / "strict", 0)
    with pytest.raises(InputError, match=r"train-000000\.tar: .*, asked 6 times.*max_bad_images is 0") as stopped:
        strict(list(rows))
    assert "\n" not in str(stopped.value)


def read_name(root: Path, image: str) -> str:
    """The name of the shard that an image lies in."""
    found = read_shards_of(root.parent)
    return found.stored[found.places[image].shard].name


def test_a_process_killed_while_it_fetches_leaves_no_half_shard_and_keeps_nobody_waiting(
    written: Path, sample: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    folder = source(written, tmp_path / "cache").folder
    root, image = image_root_of(folder, None), first_image(written, "train-000000.tar")
    store.answers = {"train-000000.tar": ["slow"]}
    fetching = multiprocessing.get_context("fork").Process(target=pixels, args=(root, image))
    fetching.start()
    part, end = folder / "fetched/.train-000000.tar.part", time.monotonic() + 60
    while not (part.is_file() and store.opened()) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(fetching.pid, signal.SIGKILL)
    fetching.join()
    assert part.is_file() and not list((folder / "fetched").glob("*.tar"))
    pixels(root, first_image(written, "train-000001.tar"))
    assert not part.exists(), "the room of what nobody fetches any more is free"
    store.answers = {}
    assert np.array_equal(pixels(root, image), pixels(sample, image))
    assert [path.suffix for path in (folder / "fetched").iterdir() if path.suffix != ".lock"] == [".tar", ".tar"]


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    written: Path, store: type[CountedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, synced = image_root_of(source(written, tmp_path / "cache").folder, None), []

    def sync(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", sync)
    pixels(root, first_image(written, "train-000000.tar"))
    assert synced == [(".train-000000.tar.part", (written / "train-000000.tar").stat().st_size)]


def test_a_cache_that_cannot_be_written_is_no_broken_image(
    written: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match=r"shard_cache .*file: cannot be written.*name another folder"):
        read_mixture([source(written, tmp_path / "file")], "train")
    folder = source(written, tmp_path / "cache").folder
    (folder / "fetched").touch()
    with pytest.raises(CannotWriteError, match=r"train-000000\.tar cannot be written .*make room there"):
        pixels(image_root_of(folder, None), first_image(written, "train-000000.tar"))


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "https://token@host/x",
        "https://host/x?X-Amz-Signature=secret",
        "gs://b/x?token=secret",
    ],
)
def test_addresses_with_secrets_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="unknown key `colour`") as unknown:
        parse_sources([{"path": url, "colour": 1}], [], None)
    assert "secret" not in str(unknown.value)
    with pytest.raises(InputError, match="a password or token in the address") as refused:
        DataArguments(data=url)
    assert not re.search(r"secret|token@|key", str(refused.value).replace("token in the", ""))
    assert redact(f"ClientError at {url} twice").count("***") == 1 and "secret" not in redact(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here", r"there is no manifest\.json; upload a folder written by .*import_records\.py"),
        ("s3://bucket/x", "pip install s3fs"),
        ("nonsense://bucket/x", "nonsense"),
        ("simplecache::s3://bucket/x", "without `::`"),
    ],
)
def test_addresses_without_such_a_folder_are_refused_in_one_line(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read_mixture([DataSource(url, shard_cache=str(tmp_path))], "train")
    assert "\n" not in str(refused.value)


def test_a_data_folder_that_is_not_in_shards_is_not_read_from_a_store(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"states no shards; write them with data_prep/write_shards\.py"):
        read_mixture([DataSource(f"file://{data}", shard_cache=str(tmp_path))], "train")


def test_nothing_leads_out_of_the_shards(written: Path, pictures: Path, tmp_path: Path) -> None:
    read_index.cache_clear()
    manifest = json.loads((written / "manifest.json").read_text())
    for name in ("../x.tar", "/etc/passwd", "train-000000.tar/..", "notes.txt"):
        copy = shutil.copytree(written, tmp_path / re.sub(r"\W", "_", name))
        stated = {**manifest, "shards": [{**manifest["shards"][0], "name": name}, *manifest["shards"][1:]]}
        (copy / "manifest.json").write_text(json.dumps(stated))
        with pytest.raises(InputError, match="states no shards"):
            read_shards_of(copy)
    index = pq.read_table(written / "shards.parquet").to_pylist()
    size = manifest["shards"][0]["bytes"]
    for number, place in enumerate([{"offset": -1}, {"length": size + 1}, {"offset": size}, {"shard": 999}]):
        copy = shutil.copytree(written, tmp_path / f"index{number}")
        table = pa.Table.from_pylist([{**index[0], **place}, *index[1:]], pq.read_schema(copy / "shards.parquet"))
        pq.write_table(table, copy / "shards.parquet")
        with pytest.raises(InputError, match=r"names a shard that|outside of its shard"):
            read_shards_of(copy)
    root = image_root_of(written, None)
    with pytest.raises(InputError, match="leaves the image root"):
        path_inside(root, "../../etc/passwd")
    with pytest.raises(InputError, match="leaves the image root"):
        path_inside(pictures, "a/shards.parquet/1.png")  # an index that a plain folder of images brings along
    with pytest.raises(UnreadableImageError, match="is in no shard"):
        pixels(root, "other.png")
    copy = shutil.copytree(written, tmp_path / "short")
    (copy / "train-000000.tar").write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"is missing or has not [\d,]+ bytes"):
        pixels(image_root_of(copy, None), first_image(written, "train-000000.tar"))


EPOCHS = {"num_train_epochs": 2, "max_steps": -1, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}


def test_a_run_from_shards_is_that_from_their_folder_and_goes_on_in_the_middle_of_an_epoch(
    tiny: Path, written: Path, sample: Path, store: type[CountedStore], tmp_path: Path
) -> None:
    def trainer(name: str, data: object = f"counted://{written}", **options: object) -> RunTrainer:
        here = {"shard_cache": str(tmp_path / "cache"), "shard_window": 2}
        sizes = {"turns_per_image": 2, "max_tokens_per_row": 1000, "image_ops": ["shift:4"]}
        tuning = TuningArguments(lora_dropout=0.1)
        return make_trainer(tiny, data, tmp_path / name, tuning, **{**here, **sizes, **EPOCHS, **options})[0]

    whole = trainer("whole")
    whole.train()
    assert whole.state.max_steps >= 8
    names = {path.name for path in written.glob("train*.tar")}
    assert store.opened() == dict.fromkeys(names, 1), "the cache holds all for the second epoch"
    folder = trainer("folder", written, image_root=str(sample))
    folder.train()
    assert history(folder) == history(whole) and all(map(torch.equal, weights(folder), weights(whole)))
    url, workers = f"file://{written}", {"dataloader_num_workers": 2}
    stopped = trainer("stopped", url, shard_cache=str(tmp_path / "other"), **workers)
    stop_in(stopped, whole.state.max_steps // 2 + 3)
    stopped.train()
    assert last_complete(stopped.run.folder).name == f"checkpoint-{whole.state.max_steps // 2 + 3}"
    resumed = trainer("stopped", url, shard_cache=str(tmp_path / "third"), **workers)
    resumed.train()
    assert history(resumed) == history(whole) and all(map(torch.equal, weights(resumed), weights(whole)))
    facts = resumed.run.facts
    assert not find_differences(facts, facts)
    [processes] = [one for one in find_differences(facts, {**facts, "world_size": 2}) if one.name == "processes"]
    assert processes.means is None and "shards are dealt to as many" in str(processes)


def test_answers_come_from_shards_as_from_a_folder(
    tiny: Path, data: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for name, folder in (("folder", data), ("shards", f"file://{written}")):
        words = ["--model", tiny, "--data", folder, "--out", tmp_path / name, "--tasks", "counting"]
        words += ["--shard_cache", tmp_path / "cache"] if name == "shards" else []
        run_here(monkeypatch, "eval/generate.py", *words, "--max_new_tokens", 4, "--dtype", "float32")
        lines = map(json.loads, (tmp_path / name / "predictions.jsonl").read_text().splitlines())
        answers.append({line["id"]: line["predict"] for line in lines})
    assert answers[0] == answers[1] and len(answers[0]) > 5


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_end_like_two_that_nobody_disturbed(
    tiny: Path, written: Path, tmp_path: Path
) -> None:
    options = {"data": f"file://{written}", "shard_cache": tmp_path / "cache", "shard_window": 2, "max_steps": 24}
    whole = Drill(tiny, written, tmp_path / "whole", options, ranks=2)
    whole.finish()
    fetched = list((tmp_path / "cache").glob("*/fetched/*.tar"))
    assert len([path for path in fetched if path.name.startswith("train")]) >= 6
    killed = Drill(tiny, written, tmp_path / "killed", {**options, "shard_cache": tmp_path / "other"}, ranks=2)
    assert kill_at_random(killed, random.Random(1), longest=1.0)
    output = killed.finish()
    assert "for 2 ranks" in output
    losses, expected = killed.losses(), whole.losses()
    assert losses.keys() == expected.keys() and max(abs(losses[step] - expected[step]) for step in expected) <= 1e-6


@pytest.mark.slow
def test_reading_from_shards_is_measured_beside_a_folder(tmp_path: Path) -> None:
    words = ["--images", 10, "--shard_mb", 0.2, "--latency", 0.05, "--out", tmp_path / "streaming.json"]
    run_script(ROOT / "benchmarks/streaming.py", *words)
    result = json.loads((tmp_path / "streaming.json").read_text())
    assert [run["fetched"] > 0 for run in result["runs"]] == [False, False, True, False, True, True]
    assert len({run["images"] for run in result["runs"]}) == 1
    assert all(run["rows_per_s"] > 0 for run in result["runs"])
