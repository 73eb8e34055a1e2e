"""Sizes of the released models, and processors with their image sizes: a plan needs no hub and no file of theirs.

Numbers of layers, widths and pixels as the models' owners publish them; tests/test_planning_sizes.py checks totals.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig, PretrainedConfig, ProcessorMixin
from transformers.utils import logging

from sarlang_sft.arguments import ModelArguments
from sarlang_sft.backbones import BACKBONES, Backbone, find_backbone
from sarlang_sft.errors import InputError
from sarlang_sft.loading import limit_pixels, load_processor


@dataclass(frozen=True)
class Architecture:
    """A model that is planned for.

    Attributes:
        counts_exactly: The processor is the model's own, so that texts have exactly its numbers of tokens.
    """

    config: PretrainedConfig
    backbone: Backbone
    processor: ProcessorMixin
    counts_exactly: bool


def _text(width: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, context: int) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": vocabulary, "max_position_embeddings": context,
    }  # fmt: skip


def _qwen2_5_vl(text: dict[str, Any], tower_mlp: int, tied: bool = False) -> dict[str, Any]:
    tower = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": tower_mlp, "window_size": 112}
    tower |= {"fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": text["hidden_size"]}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return {"text_config": text | {"rope_parameters": rope}, "vision_config": tower, "tie_word_embeddings": tied}


def _qwen3_vl(
    text: dict[str, Any], tower: dict[str, Any], deepstack: tuple[int, ...], tied: bool = False
) -> dict[str, Any]:
    tower = tower | {"num_heads": 16, "out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return {
        "text_config": text | {"head_dim": 128, "rope_parameters": rope},
        "vision_config": tower | {"deepstack_visual_indexes": list(deepstack)},
        "tie_word_embeddings": tied,
    }


_QWEN2_VL_TOWER = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584}
_CLIP_LARGE = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
_NEXT_TILINGS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION_TILINGS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
_M_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
_LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
_VICUNA_7B = _text(4096, 11008, 32, 32, 32, 32064, 4096) | {"model_type": "llama"}
_VICUNA_13B = _text(5120, 13824, 40, 40, 40, 32064, 4096) | {"model_type": "llama"}
_MISTRAL = _text(4096, 14336, 32, 32, 8, 32064, 32768) | {"model_type": "mistral", "sliding_window": None}
_QWEN2_7B = _text(3584, 18944, 28, 28, 4, 152128, 32768) | {"model_type": "qwen2"}

# Family and sizes of a released model, by its name on the hub.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2-VL-7B-Instruct": (
        "qwen2_vl",
        {
            "text_config": _text(3584, 18944, 28, 28, 4, 152064, 32768) | {"rope_parameters": _M_ROPE},
            "vision_config": _QWEN2_VL_TOWER,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        _qwen2_5_vl(_text(2048, 11008, 36, 16, 2, 151936, 128000), 3420, tied=True),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        _qwen2_5_vl(_text(3584, 18944, 28, 28, 4, 152064, 128000), 3420),
    ),
    "Qwen/Qwen2.5-VL-32B-Instruct": (
        "qwen2_5_vl",
        _qwen2_5_vl(_text(5120, 27648, 64, 40, 8, 152064, 128000), 3456),
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        "qwen2_5_vl",
        _qwen2_5_vl(_text(8192, 29568, 80, 64, 8, 152064, 128000), 3456),
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        _qwen3_vl(_text(2560, 9728, 36, 32, 8, 151936, 262144), _SMALL_TOWER, (5, 11, 17), tied=True),
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl",
        _qwen3_vl(_text(4096, 12288, 36, 32, 8, 151936, 262144), _LARGE_TOWER, (8, 16, 24)),
    ),
    "llava-hf/llava-1.5-7b-hf": ("llava", {"text_config": _VICUNA_7B, "vision_config": _CLIP_LARGE}),
    "llava-hf/llava-1.5-13b-hf": ("llava", {"text_config": _VICUNA_13B, "vision_config": _CLIP_LARGE}),
    "llava-hf/llava-v1.6-mistral-7b-hf": (
        "llava_next",
        {"text_config": _MISTRAL, "vision_config": _CLIP_LARGE, "image_grid_pinpoints": _NEXT_TILINGS},
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (
        "llava_next",
        {"text_config": _VICUNA_7B, "vision_config": _CLIP_LARGE, "image_grid_pinpoints": _NEXT_TILINGS},
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        "llava_onevision",
        {"text_config": _QWEN2_7B, "vision_config": _SIGLIP, "image_grid_pinpoints": _ONEVISION_TILINGS},
    ),
}

# Folders that a configuration's header says how to make, planned for before they are there: LLaVA-1.5-7B with the
# tower of a SARCLIP ViT-L-14 (recipes/put_tower.py), and the same with its projector trained.
_SARCLIP_LARGE = _CLIP_LARGE | {"image_size": 224, "hidden_act": "gelu"}
_LLAVA_SARCLIP = ("llava", {"text_config": _VICUNA_7B, "vision_config": _SARCLIP_LARGE, "image_seq_length": 256})
MADE = {"runs/llava_sarclip_base": _LLAVA_SARCLIP, "runs/llava_sarclip_projector": _LLAVA_SARCLIP}

_PATCHES_OF_14 = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
_SQUARE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_WHOLE = {"size": {"max_height": 224, "max_width": 224}, "crop_size": {"height": 224, "width": 224}}
# What a family's released image processors are told, and what its processors know of them.
_IMAGES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "qwen2_vl": (_PATCHES_OF_14, {}),
    "qwen2_5_vl": (_PATCHES_OF_14, {}),
    "qwen3_vl": (
        {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        {},
    ),
    "llava": (_SQUARE, {"patch_size": 14}),
    "llava_next": (_SQUARE | {"image_grid_pinpoints": _NEXT_TILINGS}, {"patch_size": 14}),
    "llava_onevision": (
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": _ONEVISION_TILINGS},
        {"num_image_tokens": 729},
    ),
}


def published_config(name: str) -> PretrainedConfig:
    """The configuration of a model in `PUBLISHED` or `MADE`."""
    family, sizes = {**PUBLISHED, **MADE}[name]
    return AutoConfig.for_model(family, dtype="bfloat16", **sizes)


def find_architecture(model: ModelArguments, texts: list[str], max_pixels: int | None) -> Architecture:
    """The model to plan for: a folder, one in `PUBLISHED` or `MADE`, or the tiny one that a demo makes.

    Args:
        texts: Of the dialogues to plan for; a tokenizer is trained on them where the model's own is not at hand.

    Raises:
        InputError: It is none of these, or the hub cannot give its configuration and processor.
    """
    name = model.model_name_or_path
    made = name in MADE and not Path(name).exists()
    if name in PUBLISHED or made:
        family = (MADE if made else PUBLISHED)[name][0]
        _, processor = _tiny(family, texts)
        images, known = (_WHOLE, {"patch_size": 14}) if made else _IMAGES[family]
        processor.image_processor = type(processor.image_processor)(**images)
        vars(processor).update(known)
        limit_pixels(processor, max_pixels)
        return Architecture(published_config(name), BACKBONES[family], processor, False)
    if name == model.tiny_folder and not Path(name).exists():
        config, processor = _tiny(model.tiny_family, texts)
        limit_pixels(processor, max_pixels)
        return Architecture(config, BACKBONES[model.tiny_family], processor, True)
    backbone = find_backbone(name)
    processor = load_processor(name, backbone, max_pixels)
    try:
        return Architecture(AutoConfig.from_pretrained(name), backbone, processor, True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"model {name}: its config.json cannot be read: {error}") from error


def _tiny(family: str, texts: list[str]) -> tuple[PretrainedConfig, ProcessorMixin]:
    """The family's tiny model, whose tokenizer knows the texts' words as released ones know most words."""
    with TemporaryDirectory() as folder:
        logging.disable_progress_bar()
        BACKBONES[family].build_tiny(Path(folder), texts, 0)
        logging.enable_progress_bar()
        return AutoConfig.from_pretrained(folder), load_processor(folder, BACKBONES[family])
