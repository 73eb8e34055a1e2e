"""Images that break while a run is under way: left out, counted once, bounded; everything else goes on as it would."""

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_trainer, run_script
from torch.utils.data import DataLoader

from sarlang_sft.arguments import DataArguments, TrainArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.bad_images import BAD_IMAGES, ReadableCollator, read_bad_images
from sarlang_sft.collate import IGNORED, DialogueCollator
from sarlang_sft.errors import InputError, UnreadableImageError, own_message
from sarlang_sft.imagery import read_image
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.packing import PlannedRows, Row
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.training import Plan, save_result
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_loss import read_batches, share_out

LORA = ROOT / "recipes/qwen_lora.py"


def missing(file: Path) -> None:
    file.unlink()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def a_text(file: Path) -> None:
    file.write_text("not found")


@pytest.fixture
def images(sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample's images, to be broken."""
    return shutil.copytree(sample / "SARimages", tmp_path / "root" / "SARimages").parent


def trees_of(data: Path, count: int) -> list[np.ndarray]:
    """Three dialogues each of the first images."""
    record = read_mixture([DataSource(str(data))], "train")["record"].to_numpy()
    return [np.flatnonzero(record == number)[:3] for number in range(count)]


def make_rows(data: Path, images: Path, rows: list[Row], trees: bool = True) -> PlannedRows:
    return PlannedRows(read_mixture([DataSource(str(data), image_root=str(images))], "train"), [rows], trees)


def image_of(rows: PlannedRows, tree: np.ndarray) -> Path:
    dialogue = rows.dialogues[int(tree[0])]
    return Path(dialogue["image_root"]) / dialogue["images"][0]


def make_collator(tiny: Path, out: Path, trees: bool = True, most: int = 10) -> ReadableCollator:
    backbone = BACKBONES["qwen2_5_vl"]
    kind = TreeCollator if trees else DialogueCollator
    return ReadableCollator(kind(load_processor(str(tiny), backbone), backbone, []), out, most)


@pytest.mark.parametrize("breaking", [missing, truncated, a_text])
@pytest.mark.parametrize("trees", [True, False])
def test_a_batch_is_what_it_would_be_without_the_image(
    trees: bool, breaking: Callable[[Path], None], tiny: Path, data: Path, images: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    a, b, c = trees_of(data, 3)
    planned = [[a, b], [c]] if trees else [[one[:1]] for one in (a, b, c)]
    rows = make_rows(data, images, planned, trees)
    file = image_of(rows, b)
    collator = make_collator(tiny, tmp_path / "out", trees)
    lacking = make_rows(data, images, [[a], [c]] if trees else [[a[:1]], [c[:1]]], trees)
    expected = collator([lacking[0], lacking[1]])
    breaking(file)
    batch = collator(list(rows))
    images_left = expected.pop("images")
    assert batch.pop("images") == images_left and len(images_left) == 2 and file.name not in str(images_left)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in expected)
    collator(list(rows))
    [line] = (tmp_path / "out" / BAD_IMAGES).read_text().splitlines()
    assert json.loads(line).keys() == {"image", "reason"} and json.loads(line)["image"] == str(file)
    printed = capfd.readouterr().out
    assert printed.count("left out: ") == 1 and f"{file}: unreadable image: " in printed and "number 1," in printed


@pytest.mark.parametrize("trees", [True, False])
def test_a_row_without_any_image_left_is_a_black_picture_without_labels(
    trees: bool, tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    a, b = trees_of(data, 2)
    rows = make_rows(data, images, [[a, b]] if trees else [[a[:1]], [b[:1]]], trees)
    truncated(image_of(rows, a))
    missing(image_of(rows, b))
    batch = make_collator(tiny, tmp_path, trees)(list(rows))
    assert batch["images"] == [] and (batch["labels"] == IGNORED).all() and len(batch["pixel_values"]) > 0
    assert len(read_bad_images(tmp_path)) == 2


def test_an_image_pair_goes_as_a_whole_and_texts_without_images_stay(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    a, b = trees_of(data, 2)
    rows = make_rows(data, images, [[a], [b]])
    [[first]], [[second]] = ([tree[:1] for tree in row] for row in rows)
    pair = {**first, "images": first["images"] + second["images"]}
    alone = {**first, "images": [], "id": "text"}
    missing(image_of(rows, b))
    batch = make_collator(tiny, tmp_path)([[[pair], [alone]], [[first]]])
    assert batch["images"] == first["images"] and len(batch["input_ids"]) == 2 and len(read_bad_images(tmp_path)) == 1


def test_so_many_images_may_be_bad_and_one_more_stops_the_run(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    trees = trees_of(data, 4)
    rows = make_rows(data, images, [[tree] for tree in trees])
    for tree in trees[:3]:
        truncated(image_of(rows, tree))
    collator = make_collator(tiny, tmp_path, most=2)
    for _ in range(2):  # the second epoch counts none again
        assert collator([rows[0], rows[1]])["images"] == []
    other_rank = make_collator(tiny, tmp_path, most=2)
    with pytest.raises(InputError, match=r"number 3 of .*bad_images\.jsonl, and max_bad_images is 2") as stopped:
        other_rank([rows[2], rows[3]])
    assert str(image_of(rows, trees[2])) in str(stopped.value) and len(read_bad_images(tmp_path)) == 3
    assert other_rank([rows[3]])["images"], "rows without a bad image stop nothing"
    with pytest.raises(InputError, match="max_bad_images is 0"):
        make_collator(tiny, tmp_path / "strict", most=0)([rows[0]])
    with pytest.raises(InputError, match="max_bad_images -1: must be 0"):
        DataArguments(data=str(data), max_bad_images=-1)


def test_several_processes_count_together(tiny: Path, data: Path, images: Path, tmp_path: Path) -> None:
    trees = trees_of(data, 8)
    rows = make_rows(data, images, [[tree] for tree in trees])
    for tree in trees:
        missing(image_of(rows, tree))
    collator = make_collator(tiny, tmp_path, most=8)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(collator, [[rows[index]] for index in range(8)] * 3, chunksize=1)
    assert read_bad_images(tmp_path) == {str(image_of(rows, tree)) for tree in trees}


def test_an_error_of_a_loader_worker_is_one_line(tiny: Path, data: Path, images: Path, tmp_path: Path) -> None:
    [tree] = trees_of(data, 1)
    rows = make_rows(data, images, [[tree]])
    file = image_of(rows, tree)
    a_text(file)
    loader = DataLoader(rows, 1, collate_fn=make_collator(tiny, tmp_path, most=0), num_workers=1)
    with pytest.raises(InputError) as stopped:
        list(loader)
    line = own_message(stopped.value)
    assert line.startswith(f"{file}: unreadable image: cannot identify image file") and "\n" not in line
    assert own_message(InputError("Caught a fish")) == "Caught a fish"


def test_the_error_of_an_image_survives_the_way_between_processes(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(UnreadableImageError) as raised:
        pool.apply(read_image, [tmp_path / "x.png"])
    assert raised.value.path == tmp_path / "x.png" and "No such file" in str(raised.value)


def train(tiny: Path, data: Path, out: Path, rows: PlannedRows, **options: object) -> tuple[RunTrainer, list[float]]:
    """Train on these rows, one a step; the trainer and its losses."""
    options = {"max_steps": len(rows), "logging_steps": 1, **options}
    trainer, _ = make_trainer(tiny, data, out, TuningArguments(), Plan(rows, None), **options)
    result = trainer.train()
    save_result(trainer, DataArguments(str(data)), result.metrics)
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_goes_on_as_if_its_plan_lacked_the_image(
    tiny: Path, data: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    trees = trees_of(data, 8)
    pairs = [list(trees[place : place + 2]) for place in range(0, 8, 2)]
    whole, lacking = (make_rows(data, images, planned) for planned in (pairs, [*pairs[:2], pairs[2][:1], pairs[3]]))
    truncated(image_of(whole, trees[5]))
    expected, without = train(tiny, data, tmp_path / "lacking", lacking)
    capfd.readouterr()
    trainer, losses = train(tiny, data, tmp_path / "whole", whole)
    assert losses == without and len(losses) == 4
    weights = dict(expected.model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in trainer.model.named_parameters())
    printed = capfd.readouterr().out
    assert "Left out 1 images that cannot be read, see" in printed and printed.count("left out: ") == 1
    assert json.loads((tmp_path / "whole/train_results.json").read_text())["bad_images"] == 1
    assert json.loads((tmp_path / "lacking/train_results.json").read_text())["bad_images"] == 0


def test_a_step_of_which_nothing_is_left_counts_for_nothing(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    trees = trees_of(data, 4)
    rows = make_rows(data, images, [[tree] for tree in trees])
    missing(image_of(rows, trees[2]))
    trainer, losses = train(tiny, data, tmp_path / "out", rows)
    assert losses[2] == 0 and all(loss > 0 for loss in losses[:2] + losses[3:])
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_a_resumed_run_counts_an_image_once_and_a_new_one_begins_anew(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    trees = trees_of(data, 4)
    rows = make_rows(data, images, [[tree] for tree in trees])
    missing(image_of(rows, trees[1]))
    missing(image_of(rows, trees[3]))
    out, steps = tmp_path / "out", {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}  # 1.5 epochs
    _, losses = train(tiny, data, out, rows, **steps)
    assert len((out / BAD_IMAGES).read_text().splitlines()) == 2
    shutil.rmtree(out / "checkpoint-6")
    again = {**steps, "resume": str(out / "checkpoint-4"), "max_bad_images": 2}
    assert train(tiny, data, out, rows, **again)[1] == losses
    assert len((out / BAD_IMAGES).read_text().splitlines()) == 2
    killed = tmp_path / "killed"  # before its first checkpoint, so that it begins anew
    killed.mkdir()
    shutil.copy(out / BAD_IMAGES, killed)
    train(tiny, data, killed, make_rows(data, images, [[trees[0]]]))
    assert not read_bad_images(killed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_mid_epoch_opens_only_the_images_that_are_left(
    workers: int, tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    """The images of the steps before are gone: whoever opened one of them would stop."""
    trees = trees_of(data, 6)
    rows = make_rows(data, images, [[tree] for tree in trees])
    options = {"save_strategy": "steps", "save_steps": 3, "max_bad_images": 0, "dataloader_num_workers": workers}
    _, losses = train(tiny, data, tmp_path / "out", rows, **options)
    shutil.rmtree(tmp_path / "out/checkpoint-6")
    for tree in trees[:3]:
        missing(image_of(rows, tree))
    options["resume"] = str(tmp_path / "out/checkpoint-3")
    assert train(tiny, data, tmp_path / "out", rows, **options)[1] == losses
    missing(image_of(rows, trees[3]))
    with pytest.raises(InputError, match="max_bad_images is 0"):
        train(tiny, data, tmp_path / "out", rows, **options)


STEPS = 6


@pytest.fixture
def words(tiny: Path, data: Path, images: Path) -> list[object]:
    """Of a recipe whose rows hold an image or two."""
    return [
        LORA, "--model_name_or_path", tiny, "--data", data, "--image_root", images, "--max_tokens_per_row", 150,
        "--turns_per_image", 1, "--max_steps", STEPS, "--logging_steps", 1, "--dtype", "float32", "--save_strategy",
        "no", "--report_to", "none", "--gradient_checkpointing", "false", "--dataloader_num_workers", 0,
    ]  # fmt: skip


@pytest.fixture
def planned(tiny: Path, data: Path, images: Path, tmp_path: Path) -> list[list[Path]]:
    """The images of each of the recipe's rows in their order, two rows a step."""
    trainer, _ = make_trainer(
        tiny, data, tmp_path / "plan", TuningArguments(), turns_per_image=1, max_tokens_per_row=150, max_steps=STEPS,
        image_root=str(images), per_device_train_batch_size=2,
    )  # fmt: skip
    return [[images / tree[0]["images"][0] for tree in row] for row in list(trainer.train_dataset)[: 2 * STEPS]]


def losses_of(out: Path) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_two_ranks_go_on_when_one_has_nothing_left(
    words: list[object], planned: list[list[Path]], tmp_path: Path
) -> None:
    for file in planned[5]:  # all that the second rank has in the third step
        truncated(file)
    run_script(*words, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "one")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    output = run_script(*torchrun, *words, "--per_device_train_batch_size", 1, "--output_dir", tmp_path / "two")
    count = len(planned[5])
    assert output.count("left out: ") == count and f"Left out {count} images that cannot be read" in output
    assert json.loads((tmp_path / "two/train_results.json").read_text())["bad_images"] == count
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4)
    assert len(losses_of(tmp_path / "two")) == STEPS


def test_the_recipe_ends_with_one_line_and_code_2(
    words: list[object], planned: list[list[Path]], tmp_path: Path
) -> None:
    first, second = planned[2][0], planned[4][0]
    truncated(first)
    missing(second)
    words = [*words, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out", "--max_bad_images", 1]
    output = run_script(*words, code=2)
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if "error: " in line]
    file = tmp_path / "out" / BAD_IMAGES
    assert re.search(rf"error: {second}: unreadable image: .*No such file", line)
    assert f"it is number 2 of the unreadable images of this run, all named in {file}, and max_bad_images is 1" in line
    assert read_bad_images(tmp_path / "out") == {str(first), str(second)}


def test_an_image_of_the_first_row_stops_before_the_model_is_loaded(
    words: list[object], planned: list[list[Path]], tmp_path: Path
) -> None:
    missing(planned[0][0])
    output = run_script(*words, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out", code=2)
    assert f"error: {planned[0][0]}: unreadable image" in output and "Loading weights" not in output


def test_evaluation_leaves_images_out_as_well(tiny: Path, data: Path, images: Path, tmp_path: Path) -> None:
    names = read_mixture([DataSource(str(data), image_root=str(images))], "val")["images"].to_pylist()
    truncated(images / names[0][0])
    trainer, _ = make_trainer(
        tiny, data, tmp_path / "out", TuningArguments(), eval_strategy="steps", eval_steps=2, max_steps=2,
        image_root=str(images), dataloader_num_workers=1,
    )  # fmt: skip
    trainer.train()
    [evaluated] = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert np.isfinite(evaluated) and len(read_bad_images(tmp_path / "out")) == 1


@pytest.mark.parametrize("trees", [True, False])
def test_a_rank_that_cannot_read_its_last_row_of_val_counts_no_other_instead(
    trees: bool, tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    rows = make_rows(data, images, [[tree[:1]] for tree in trees_of(data, 3)], trees)
    collator, args = make_collator(tiny, tmp_path / "out", trees), TrainArguments(str(tmp_path), report_to="none")
    args.dataloader_num_workers = 0

    def supervised(rank: int) -> int:
        batches = read_batches(rows, share_out(3, rank, 2, 2), collator, args)
        return sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)

    assert supervised(0) > supervised(1) > 0
    truncated(image_of(rows, rows.epochs[0][1][0]))  # all that the second rank has
    assert supervised(1) == 0


def test_a_val_of_which_nothing_can_be_read_has_no_loss_and_training_goes_on(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    rows = make_rows(data, images, [[tree] for tree in trees_of(data, 5)])
    table, planned = rows.dialogues.data.table, rows.epochs[0]
    plan = Plan(PlannedRows(table, [planned[:3]], True), PlannedRows(table, [planned[3:]], True))
    for [tree] in planned[3:]:
        missing(image_of(rows, tree))
    trainer, _ = make_trainer(
        tiny, data, tmp_path / "out", TuningArguments(), plan, max_steps=2, eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert np.isnan(losses).all() and len(losses) == trainer.state.global_step == 2


def test_a_line_that_a_full_disk_broke_off_hides_no_other(
    tiny: Path, data: Path, images: Path, tmp_path: Path
) -> None:
    rows = make_rows(data, images, [[tree] for tree in trees_of(data, 2)])
    files = [image_of(rows, tree) for [tree] in rows.epochs[0]]
    for file in files:
        missing(file)
    collator = make_collator(tiny, tmp_path / "out")
    collator([rows[0]])
    with open(tmp_path / "out" / BAD_IMAGES, "a") as noted:
        noted.write(json.dumps({"image": str(files[1]), "reason": "missing"})[:20])
    assert read_bad_images(tmp_path / "out") == {str(files[0])}
    for _ in range(2):  # the first line after it is lost with it
        collator([rows[1]])
    assert read_bad_images(tmp_path / "out") == set(map(str, files))
