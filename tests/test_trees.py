"""Image trees against separate samples: the same tokens, the same losses, the same gradients."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from transformers import MistralConfig, ProcessorMixin, Qwen3NextConfig

from sarlang_sft.attention import (
    FLEX,
    Attention,
    check_isolates_branches,
    choose_attention,
    dense_mask,
    tree_mask,
    tree_rule,
)
from sarlang_sft.backbones import BACKBONES, find_backbone, mrope_positions
from sarlang_sft.collate import IGNORED, DialogueCollator
from sarlang_sft.errors import InputError
from sarlang_sft.loading import load_processor, load_weights
from sarlang_sft.supervision import answer_weights, answers
from sarlang_sft.trees import PADDING, TRUNK, TreeCollator

TURNS = [
    [("Is there a ship in the image?", "Yes.")],
    [("How many ships are located in the image?", "2."), ("Where are they?", "top left")],
    [("Is there a car in the image?", "no")],
    [("Describe the content of this image in one sentence.", "Two ships: one\nnear a <b>pier</b>.")],
    [("Describe the content of this image in one sentence.", "Two ships at sea.")],
]
GRADIENT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (140, 100)), ("b.png", (96, 96)), ("c.png", (48, 150))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0]), np.uint8)).save(folder / name)
    return folder


def tree(folder: Path, images: list[str], turns: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """A tree as the collator takes it."""
    return [
        {
            "id": f"{'+'.join(images)}:{number}",
            "turns": [{"question": question, "answer": answer} for question, answer in dialogue],
            "images": images,
            "image_root": str(folder),
            "split": "test",
        }
        for number, dialogue in enumerate(turns)
    ]


def rows_of(folder: Path, layout: str) -> list[list[list[dict]]]:
    """Batches of every kind: one tree, several in a row, rows of unequal length, text only, an image pair."""
    a, b = tree(folder, ["a.png"], TURNS), tree(folder, ["b.png"], TURNS[:2])
    c, one = tree(folder, ["c.png"], TURNS[1:4]), tree(folder, ["a.png"], TURNS[3:4])
    pair, text = tree(folder, ["a.png", "b.png"], TURNS[:3]), tree(folder, [], TURNS[2:5])
    return {
        "one tree": [[a]],
        "several trees in a row": [[b, a, c]],
        "padded rows": [[c], [a, b]],
        "one dialogue": [[one]],
        "pairs and text": [[text, pair], [one, text]],
        "text only": [[text]],
    }[layout]


LAYOUTS = ("one tree", "several trees in a row", "padded rows", "one dialogue", "pairs and text", "text only")


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def family(request: pytest.FixtureRequest, tinies: dict[str, Path]) -> tuple[str, ProcessorMixin]:
    folder = str(tinies[request.param])
    return folder, load_processor(folder, BACKBONES[request.param])


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return parameters_to_vector([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])


def separate(model: torch.nn.Module, collate: DialogueCollator, rows: list[list[list[dict]]]) -> tuple[float, int]:
    """Sum of the token losses of every dialogue as a batch of its own, and the number of tokens; gradients add up."""
    total, tokens = 0.0, 0
    for dialogue in itertools.chain.from_iterable(itertools.chain.from_iterable(rows)):
        batch = collate([dialogue])
        labels = batch.pop("labels")[:, 1:]
        loss = cross_entropy(model(**batch).logits[:, :-1].transpose(1, 2), labels, reduction="sum")
        loss.backward()
        total += loss.item()
        tokens += int((labels != IGNORED).sum())
    return total, tokens


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_full_gradient_are_those_of_separate_samples(
    layout: str, checkpointing: bool, family: tuple[str, ProcessorMixin], pictures: Path
) -> None:
    folder, processor = family
    backbone = find_backbone(folder)
    rows = rows_of(pictures, layout)
    model = load_weights(folder, backbone, "float32").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    expected, tokens = separate(model, DialogueCollator(processor, backbone, []), rows)
    reference = gradient(model)
    model.zero_grad()
    batch = TreeCollator(processor, backbone, [])(rows)
    labels = batch.pop("labels")[:, 1:]
    if "segments" in batch:
        batch["attention_mask"] = tree_mask(batch.pop("segments"), "sdpa")
    loss = cross_entropy(model(**batch).logits[:, :-1].transpose(1, 2), labels, reduction="sum")
    loss.backward()
    assert int((labels != IGNORED).sum()) == tokens
    assert "pixel_values" in batch, "every rank walks through the vision tower at every step"
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    error = (gradient(model) - reference).norm() / reference.norm()
    assert error < GRADIENT_TOLERANCE, f"relative error of the gradient {error:.1e}"


def branches(batch: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Places of trunk and branch together, for every branch of a batch of one row."""
    number, branch = batch["segments"][0].unbind(-1)
    for one in range(int(number.max()) + 1):
        for own in range(1, int(branch[number == one].max()) + 1):
            yield ((number == one) & ((branch == TRUNK) | (branch == own))).nonzero().flatten()


@pytest.mark.parametrize("layout", ["one tree", "several trees in a row"])
def test_trunk_and_branch_are_exactly_the_tokens_of_the_separate_sample(
    layout: str, family: tuple[str, ProcessorMixin], pictures: Path
) -> None:
    folder, processor = family
    check_tokens(processor, find_backbone(folder), rows_of(pictures, layout))


def test_real_qwen_trees_have_the_tokens_labels_and_answers_of_separate_samples(
    real_data: Path, pictures: Path
) -> None:
    backbone = BACKBONES["qwen2_5_vl"]
    processor = load_processor(str(real_data / "qwen2_5_vl_7b"), backbone)
    check_isolates_branches(str(real_data / "qwen2_5_vl_7b"), 1 << 20)
    for layout in ("one tree", "several trees in a row"):
        check_tokens(processor, backbone, rows_of(pictures, layout))


def check_tokens(processor: ProcessorMixin, backbone: Any, rows: list[list[list[dict]]]) -> None:
    batch = TreeCollator(processor, backbone, [])(rows)
    collate = DialogueCollator(processor, backbone, [])
    dialogues = list(itertools.chain.from_iterable(rows[0]))
    for dialogue, places in zip(dialogues, branches(batch), strict=True):
        alone = collate([dialogue])
        assert torch.equal(batch["input_ids"][0, places], alone["input_ids"][0])
        assert torch.equal(batch["labels"][0, places], alone["labels"][0])
        kept = batch["labels"][0, places][batch["labels"][0, places] != IGNORED]
        text = processor.tokenizer.decode(kept, skip_special_tokens=True).split()
        assert "".join(text) == "".join("".join(turn["answer"].split()) for turn in dialogue["turns"])
    separately = sum(len(collate([dialogue])["input_ids"][0]) for dialogue in dialogues)
    assert (batch["segments"][..., 1] == TRUNK).any() and batch["input_ids"].shape[1] < separately


def test_images_with_one_dialogue_are_ordinary_samples(family: tuple[str, ProcessorMixin], pictures: Path) -> None:
    """No branch to keep apart: a plain padded batch, which causal kernels take without a dense mask."""
    folder, processor = family
    backbone = find_backbone(folder)
    first, second = tree(pictures, ["a.png"], TURNS[:1]), tree(pictures, ["b.png"], TURNS[3:4])
    batch = TreeCollator(processor, backbone, [])([[first], [second]])
    flat = DialogueCollator(processor, backbone, [])([*first, *second])
    assert "segments" not in batch
    for name in ("input_ids", "labels", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], flat[name]), name


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if row.positions is mrope_positions])
def test_qwen_positions_are_the_models_own(name: str, tinies: dict[str, Path], pictures: Path) -> None:
    folder = str(tinies[name])
    backbone = find_backbone(folder)
    processor, model = load_processor(folder, backbone), load_weights(folder, backbone, "float32")
    for images in (["a.png"], ["c.png", "a.png", "b.png"]):
        batch = DialogueCollator(processor, backbone, [])(tree(pictures, images, TURNS[:1]))
        grids = batch["image_grid_thw"]
        expected, _ = model.model.get_rope_index(batch["input_ids"], batch["mm_token_type_ids"], grids)
        assert torch.equal(backbone.positions(processor, batch["input_ids"][0], grids), expected[:, 0])
    assert backbone.positions(processor, torch.tensor([5, 6, 7]), None).tolist() == [[0, 1, 2]] * 3


def test_a_branch_does_not_see_another_one(family: tuple[str, ProcessorMixin], pictures: Path) -> None:
    folder, processor = family
    backbone = find_backbone(folder)
    model = load_weights(folder, backbone, "float32").eval()
    batch = TreeCollator(processor, backbone, [])(rows_of(pictures, "several trees in a row"))
    batch.pop("labels")
    segments = batch.pop("segments")
    batch["attention_mask"] = tree_mask(segments, "sdpa")
    changed = (segments[0, :, 0] == 1) & (segments[0, :, 1] == 2)
    with torch.inference_mode():
        before = model(**batch).logits[0]
        batch["input_ids"] = torch.where(changed, 7, batch["input_ids"])
        after = model(**batch).logits[0]
    assert torch.equal(before[~changed], after[~changed]) and not torch.allclose(before[changed], after[changed])


def test_masks_follow_the_rule_token_by_token() -> None:
    rows = ["0.0 0.0 0.1 0.1 0.2 1.0 1.1 1.2 1.2 -1.-1", "0.0 0.1 0.1 0.2 0.3 0.3 -1.-1 -1.-1 -1.-1 -1.-1"]
    segments = torch.tensor([[[int(n) for n in token.split(".")] for token in row.split()] for row in rows])
    mask = dense_mask(segments)[:, 0]
    rule = tree_rule(segments)
    for row, query, key in itertools.product(range(2), range(10), range(10)):
        (own_tree, own), (other_tree, other) = segments[row, query].tolist(), segments[row, key].tolist()
        expected = key <= query and own_tree == other_tree and other in (TRUNK, own)
        assert bool(mask[row, query, key]) == expected
        assert bool(rule(torch.tensor(row), 0, torch.tensor(query), torch.tensor(key))) == expected
    assert mask.diagonal(dim1=1, dim2=2).all(), "a row without any visible key becomes NaN"


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="FlexAttention compiles on a CPU: no g++")
def test_flex_attention_gives_the_logits_of_the_dense_mask(family: tuple[str, ProcessorMixin], pictures: Path) -> None:
    """Forward only: FlexAttention has no backward on a CPU."""
    folder, processor = family
    backbone = find_backbone(folder)
    batch = TreeCollator(processor, backbone, [], row_length=512)(rows_of(pictures, "padded rows"))
    assert batch["input_ids"].shape == (2, 512)
    real = batch["segments"][..., 0] != PADDING
    batch.pop("labels")
    segments, logits = batch.pop("segments"), {}
    for attention in (Attention("sdpa", "sdpa"), Attention(FLEX, "sdpa")):
        model = load_weights(folder, backbone, "float32", attention.by_config()).eval()
        mask = tree_mask(segments, attention.language_model)
        with torch.inference_mode():
            logits[attention.language_model] = model(**batch, attention_mask=mask).logits[real]
    assert torch.allclose(logits["sdpa"], logits[FLEX], atol=1e-4)
    # as in full fine-tuning with --bf16: rotated queries and keys in float32, values in bfloat16
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rounded = model(**batch, attention_mask=mask, use_cache=False).logits[real]
    assert torch.allclose(rounded.float(), logits[FLEX], atol=0.1 * logits[FLEX].std().item())


def test_attention_is_chosen_for_the_machine_and_the_path() -> None:
    assert choose_attention("auto", trees=True, on_cuda=False, half=True) == Attention("sdpa", "sdpa")
    assert choose_attention("auto", trees=False, on_cuda=False, half=False) == Attention("sdpa", "sdpa")
    assert choose_attention("auto", trees=True, on_cuda=True, half=True).language_model == FLEX
    assert choose_attention("sdpa", trees=True, on_cuda=True, half=True).language_model == "sdpa"
    assert str(Attention(FLEX, "sdpa")) == "attention: language model FlexAttention, vision tower SDPA"
    for requested, trees, half, message in (
        ("eager", True, True, "adds a boolean mask"),
        ("flex_attention", True, True, "cannot train on a CPU"),
        ("flash_attention_2", False, True, r"needs an NVIDIA GPU .* `pip install -r requirements-gpu.txt .*`"),
        ("flash_attention_3", False, True, r"needs an NVIDIA GPU .* `pip install 'git\+https.*hopper' .*`"),
        ("flash_attention_2", False, False, "computes in 16 bits only; set --dtype bfloat16 or --bf16 true"),
        ("flash_attention_3", True, True, "has no mask that keeps branches apart"),
        ("fast", True, True, "choose one of auto, sdpa"),
    ):
        with pytest.raises(InputError, match=message):
            choose_attention(requested, trees, on_cuda=False, half=half)


def test_models_that_mix_branches_are_refused_by_their_layers(tinies: dict[str, Path], tmp_path: Path) -> None:
    for folder in tinies.values():
        check_isolates_branches(str(folder), 1 << 20)
    Qwen3NextConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"linear_attention layers cannot keep .* --image_trees false"):
        check_isolates_branches(str(tmp_path), 4096)
    MistralConfig(sliding_window=2048).save_pretrained(tmp_path)
    check_isolates_branches(str(tmp_path), 2048)
    with pytest.raises(InputError, match=r"sees 2,048 tokens back, .*; set --max_tokens_per_row to at most 2048"):
        check_isolates_branches(str(tmp_path), 4096)


def test_dialogues_with_other_images_are_no_tree(tiny: Path, pictures: Path) -> None:
    backbone = find_backbone(str(tiny))
    collate = TreeCollator(load_processor(str(tiny), backbone), backbone, [])
    mixed = tree(pictures, ["a.png"], TURNS[:1]) + tree(pictures, ["a.png", "b.png"], TURNS[1:2])
    with pytest.raises(ValueError, match="must begin with the same images"):
        collate([[mixed]])


def test_every_answer_weighs_the_same_if_asked() -> None:
    labels = torch.full((2, 9), IGNORED)
    labels[0, 1:3] = labels[0, 4:5] = labels[1, 6:9] = 5
    assert answers(labels).tolist() == [[0, 1, 1, 0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 3, 3, 3]]
    weights = answer_weights(labels)
    assert (
        weights.sum().item() == pytest.approx(3)
        and weights[0, 4] == 1
        and weights[1, 6].item() == pytest.approx(1 / 3)
    )
