from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from sarlang_sft.backbones import BACKBONES, find_backbone
from sarlang_sft.collate import IGNORED, DialogueCollator, Tokens, expand_images, image_runs, to_messages
from sarlang_sft.errors import InputError
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture

QWEN = BACKBONES["qwen2_5_vl"]
IMAGE_TOKENS = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
TURNS = [
    {"question": "Question: How many ships are located in the image?. Answer the question concisely.", "answer": "2."},
    {"question": "Where are most ships positioned within the image?", "answer": "top left"},
    {
        "question": "Describe the content of this image in one sentence.",
        "answer": "Two ships: <b>one</b>\nnear a pier.",
    },
]


@pytest.fixture(scope="module")
def qwen_processor(real_data: Path) -> ProcessorMixin:
    return load_processor(str(real_data / "qwen2_5_vl_7b"), QWEN)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (140, 100)), ("b.png", (224, 224))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0]), np.uint8)).save(tmp_path / name)
    return tmp_path


def row(turns: list[dict[str, str]], images: list[str], root: Path | str = "") -> dict:
    return {"id": "x:1", "turns": turns, "images": images, "image_root": str(root), "split": "test"}


@pytest.mark.parametrize("count", [1, 3])
def test_real_qwen_labels_are_exactly_the_answers(qwen_processor: ProcessorMixin, pictures: Path, count: int) -> None:
    collate = DialogueCollator(qwen_processor, QWEN, [])
    batch = collate([row(TURNS[:count], ["a.png"], pictures)])
    kept = batch["labels"][0] != IGNORED
    tokenizer = qwen_processor.tokenizer
    assert tokenizer.decode(batch["labels"][0][kept]) == "".join(f"{t['answer']}<|im_end|>\n" for t in TURNS[:count])
    assert torch.equal(batch["labels"][0][kept], batch["input_ids"][0][kept])
    special = torch.tensor(tokenizer.convert_tokens_to_ids(IMAGE_TOKENS))
    assert not torch.isin(batch["labels"], special).any()
    image_tokens = (batch["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum()
    assert image_tokens == batch["image_grid_thw"].prod() // 4 == 5 * 4  # 140 x 100 px at 28 px a token, rounded
    # each answer starts right after the assistant's cue
    starts = (kept & ~kept.roll(1)).nonzero().flatten().tolist()
    assert len(starts) == count
    assert all(tokenizer.decode(batch["input_ids"][0][s - 3 : s]) == "<|im_start|>assistant\n" for s in starts)


def test_real_qwen_text_is_the_released_templates_and_mixed_batches_pad_on_the_right(
    qwen_processor: ProcessorMixin, pictures: Path
) -> None:
    collate = DialogueCollator(qwen_processor, QWEN, [])
    rows = [
        row(TURNS[:1], ["a.png", "b.png"], pictures),
        row(TURNS[:3], [], pictures),
        row(TURNS[1:2], ["b.png"], pictures),
    ]
    batch = collate(rows)
    for index, item in enumerate(rows):
        released = qwen_processor.apply_chat_template(to_messages(item["turns"], len(item["images"])), tokenize=False)
        length = int(batch["attention_mask"][index].sum())
        assert batch["attention_mask"][index, :length].all() and (batch["labels"][index, length:] == IGNORED).all()
        text = qwen_processor.tokenizer.decode(batch["input_ids"][index, :length])
        while "<|image_pad|><|image_pad|>" in text:
            text = text.replace("<|image_pad|><|image_pad|>", "<|image_pad|>")
        assert text == released
        answers = batch["labels"][index][batch["labels"][index] != IGNORED]
        assert qwen_processor.tokenizer.decode(answers) == "".join(f"{t['answer']}<|im_end|>\n" for t in item["turns"])


def test_tiny_batch_of_the_sample_supervises_the_answers(sample: Path, data: Path, tiny: Path) -> None:
    backbone = find_backbone(str(tiny))
    processor = load_processor(str(tiny), backbone)
    rows = read_mixture([DataSource(str(data))], "train").to_pylist()[:12]
    batch = DialogueCollator(processor, backbone, [])(rows)
    for item, labels in zip(rows, batch["labels"], strict=True):
        assert processor.tokenizer.decode(labels[labels != IGNORED]) == item["turns"][0]["answer"] + "<|im_end|>\n"
    model = backbone.model_class.from_pretrained(tiny)
    assert torch.isfinite(model(**batch).loss)


def test_augmentation_moves_training_images_only(tiny: Path, pictures: Path) -> None:
    backbone = find_backbone(str(tiny))
    collate = DialogueCollator(load_processor(str(tiny), backbone), backbone, ["shift:9"])
    for split, moves in (("train", True), ("val", False), ("test", False)):
        rows = [row(TURNS[:1], ["b.png"], pictures) | {"split": split, "draw": [draw]} for draw in range(6)]
        seen = {collate([one])["pixel_values"].sum().item() for one in rows}
        assert (len(seen) > 1) == moves, split


def test_a_pixel_budget_shrinks_the_grid(qwen_processor: ProcessorMixin, real_data: Path, pictures: Path) -> None:
    small = load_processor(str(real_data / "qwen2_5_vl_7b"), QWEN, max_pixels=112 * 112)
    grids = [
        DialogueCollator(processor, QWEN, [])([row(TURNS[:1], ["b.png"], pictures)])["image_grid_thw"]
        for processor in (qwen_processor, small)
    ]
    assert grids[0].tolist() == [[1, 16, 16]] and grids[1].tolist() == [[1, 8, 8]]
    with pytest.raises(InputError, match="max_pixels 100"):
        load_processor(str(real_data / "qwen2_5_vl_7b"), QWEN, max_pixels=100)


def test_a_dialogue_without_a_supervised_token_stops_the_run_by_name(tiny: Path, pictures: Path) -> None:
    backbone = find_backbone(str(tiny))
    [template] = backbone.training_templates
    silent = template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    processor = load_processor(str(tiny), backbone)
    collate = DialogueCollator(processor, replace(backbone, training_templates=(silent,)), [])
    with pytest.raises(InputError, match=r"dialogue x:1 of a\.png: no token carries loss"):
        collate([row(TURNS[:1], ["a.png"], pictures)])


def test_image_expansion_refuses_sequences_that_differ() -> None:
    assert image_runs([1, 9, 2, 9, 3], [1, 9, 9, 9, 2, 9, 3], 9) == [3, 1]
    tokens = expand_images(Tokens([1, 9, 2, 3], [True, True, False, True]), [3], 9)
    assert tokens == Tokens([1, 9, 9, 9, 2, 3], [True, False, False, False, False, True])
    for expanded in ([1, 9, 9, 2, 4], [1, 9, 2], [1, 9, 2, 3, 3]):
        with pytest.raises(ValueError, match="tokens"):
            image_runs([1, 9, 2, 3], expanded, 9)


def test_a_missing_model_folder_and_an_unknown_family_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no/such/model: neither a folder"):
        find_backbone("no/such/model")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="family `bert` is not supported"):
        find_backbone(str(tmp_path))
