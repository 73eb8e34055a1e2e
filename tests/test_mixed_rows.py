"""Ranks with images beside ranks without any: whoever cuts or averages the tower's weights waits for all of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from test_training import LORA, losses, options_of, torchrun

from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five rows with an image and three without: two ranks cannot share them out so that no step has one of each."""

    def record(name: str, images: list[str], words: int) -> Record:
        turn = Turn("How many ships? " * words, f"{len(images)}.")
        return Record(images, 96, 96, "x", "train", dialogues=[Dialogue(name, "boxes", "counting", [turn])])

    for number in range(5):
        Image.fromarray(np.full((96, 96), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    records = [record(f"image {number}", [f"{number}.png"], 1) for number in range(5)]
    records += [record(f"text {number}", [], 12) for number in range(3)]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("way", "trees"),
    [
        ("zero3", "true"),
        pytest.param("fsdp", "false", marks=pytest.mark.slow),
        pytest.param("ddp", "true", marks=pytest.mark.slow),
        pytest.param("zero3", "false", marks=pytest.mark.slow),
        pytest.param("fsdp", "true", marks=pytest.mark.slow),
        pytest.param("zero2", "true", marks=pytest.mark.slow),
    ],
)
def test_a_rank_without_an_image_does_not_keep_the_others_waiting(
    way: str, trees: str, tiny: Path, mixed: Path, tmp_path: Path
) -> None:
    """With adapters in the tower, which every rank must walk through; deepspeedai/DeepSpeed#7170, trl#6617."""
    output = torchrun(
        2, LORA, "--model_name_or_path", tiny, "--data", mixed, "--output_dir", tmp_path / "out", "--dtype", "float32",
        "--max_steps", 4, "--logging_steps", 1, "--max_tokens_per_row", 80, "--image_trees", trees,
        "--save_strategy", "no", "--tuning", "lora_tower", "--gradient_checkpointing", "true",
        "--per_device_train_batch_size", 1, "--use_cpu", "true", "--dataloader_num_workers", 0,
        *options_of(way, tmp_path),
    )  # fmt: skip
    assert ("8 trees in 8 rows" if trees == "true" else "8 dialogues, one per row, 2 rows per step") in output
    assert len(losses(tmp_path / "out")) == 4 and min(losses(tmp_path / "out")) > 0
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    tower = [value for key, value in adapter.items() if "visual" in key and "lora_B" in key]
    assert tower and all(value.any() for value in tower), "no gradient came here"
