"""Which attention kernels a run uses, and the masks that keep the branches of image trees apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from sarlang_sft.errors import InputError
from sarlang_sft.trees import TRUNK

# Qwen-VL classes do not declare that they support FlexAttention; under a name of our own they take it.
FLEX = "image_trees"
AttentionInterface.register(FLEX, flex_attention_forward)
AttentionMaskInterface.register(FLEX, flex_attention_mask)

NAMES = {
    FLEX: "FlexAttention",
    "sdpa": "SDPA",
    "flash_attention_2": "FlashAttention-2",
    "flash_attention_3": "FlashAttention-3",
    "eager": "eager",
}
CHOICES = ("auto", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "eager")
FLASH = {
    "flash_attention_2": (is_flash_attn_2_available, "pip install -r requirements-gpu.txt --no-build-isolation"),
    "flash_attention_3": (
        is_flash_attn_3_available,
        "pip install 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper' --no-build-isolation",
    ),
}


@dataclass(frozen=True)
class Attention:
    """The kernels of the language model and of the vision tower, by their names in transformers."""

    language_model: str
    vision_tower: str

    def __str__(self) -> str:
        return f"attention: language model {NAMES[self.language_model]}, vision tower {NAMES[self.vision_tower]}"

    def by_config(self) -> dict[str, str]:
        """As `from_pretrained(attn_implementation=...)` takes it."""
        return {"text_config": self.language_model, "vision_config": self.vision_tower}


def choose_attention(requested: str, trees: bool, on_cuda: bool, half: bool) -> Attention:
    """The kernels for a run.

    Args:
        requested: One of `CHOICES`. `auto` is FlexAttention (trees) or FlashAttention-2 if installed (flat) on a
            GPU, and SDPA on a CPU; the vision tower, which needs no mask, takes FlashAttention-2 wherever it is.
        trees: Whether branches must be kept apart by a mask.
        half: Whether the model computes in 16 bits: its weights are, or `bf16` or `fp16` is on.

    Raises:
        InputError: The choice is unknown, cannot run here, or cannot take the mask of the trees.
    """
    option = f"attn_implementation {requested}"
    if requested not in CHOICES:
        raise InputError(f"attn_implementation `{requested}`: choose one of {', '.join(CHOICES)}")
    if requested in FLASH:
        if trees:
            raise InputError(f"{option}: has no mask that keeps branches apart; use auto, or --image_trees false")
        if not half:
            raise InputError(f"{option}: computes in 16 bits only; set --dtype bfloat16 or --bf16 true, or use sdpa")
        installed, install = FLASH[requested]
        if not on_cuda or not installed():
            raise InputError(f"{option}: needs an NVIDIA GPU and its package; install it with `{install}`")
    if requested == "flex_attention" and not on_cuda:
        raise InputError(f"{option}: cannot train on a CPU; use sdpa")
    if trees and requested == "eager":
        raise InputError(f"{option}: adds a boolean mask instead of applying it; use auto, or --image_trees false")
    flash = on_cuda and half and is_flash_attn_2_available()
    tower = "flash_attention_2" if flash else "sdpa"
    if requested == "flex_attention" or (requested == "auto" and trees and on_cuda):
        return Attention(FLEX, tower)
    if requested == "auto":
        return Attention("flash_attention_2" if flash else "sdpa", tower)
    return Attention(requested, requested)


def check_isolates_branches(model_name_or_path: str, row_tokens: int) -> None:
    """Raise [`InputError`] if the model has layers that the mask of the trees would not be exact for.

    Args:
        row_tokens: Of the longest row, and so of the longest sample.
    """
    config = AutoConfig.from_pretrained(model_name_or_path).get_text_config()
    kinds = set(config.layer_types or []) if "layer_types" in config else set()
    if kinds - {"full_attention"}:
        raise InputError(
            f"model {model_name_or_path}: its {', '.join(sorted(kinds - {'full_attention'}))} layers cannot keep the "
            "branches of an image tree apart; train it with --image_trees false"
        )
    window = config.to_dict().get("sliding_window")
    if window is not None and window < row_tokens:
        raise InputError(
            f"model {model_name_or_path}: sees {window:,} tokens back, which the mask of image trees does not know; "
            f"set --max_tokens_per_row to at most {window}, or --image_trees false"
        )


def tree_rule(segments: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Who attends to whom, as a FlexAttention `mask_mod`.

    Args:
        segments: (B, L, 2) integers: tree and branch of every token; branch 0 is the trunk.
    """
    tree, branch = segments.unbind(dim=-1)
    tree, branch = tree.contiguous(), branch.contiguous()

    def allowed(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same_tree = tree[b, query] == tree[b, key]
        visible = (branch[b, key] == TRUNK) | (branch[b, key] == branch[b, query])
        return (key <= query) & same_tree & visible

    return allowed


def dense_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L) boolean mask of [`tree_rule`] for SDPA: True where the query (row) sees the key (column)."""
    tree, branch = segments.unbind(dim=-1)
    place = torch.arange(segments.shape[1], device=segments.device)
    same_tree = tree[:, :, None] == tree[:, None, :]
    visible = (branch == TRUNK)[:, None, :] | (branch[:, :, None] == branch[:, None, :])
    return ((place[:, None] >= place) & same_tree & visible)[:, None]


def block_mask(segments: torch.Tensor) -> BlockMask:
    """The same mask for FlexAttention, which skips the blocks that are empty."""
    batch, length, _ = segments.shape
    return create_block_mask(tree_rule(segments), batch, None, length, length, device=segments.device)


def tree_mask(segments: torch.Tensor, implementation: str) -> torch.Tensor | BlockMask:
    """The mask of [`tree_rule`] in the form that the language model's attention takes."""
    return block_mask(segments) if implementation == FLEX else dense_mask(segments)


@contextmanager
def answering_attention(model: PreTrainedModel, training: str) -> Iterator[None]:
    """SDPA in the language model, which takes the masks of padded prompts and of a cache; then `training` again.

    Args:
        training: The language model's attention in training, by its name in transformers.
    """
    model.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": training})
