"""Every family tiny: its own classes with about a million random parameters, and a processor trained on a few texts.

Patches have 12 pixels. Weights start at a standard deviation near 1 / sqrt(width): the families' 0.02 suits widths of
thousands and lets a model of width 128 learn several times slower.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.video_processing_utils import BaseVideoProcessor
from trl.chat_template_utils import qwen2_5_vl_chat_template, qwen3_vl_chat_template

from sarlang_sft import templates

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
QWEN2_VL_BOX_TOKENS = ("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>")

PATCH = 12
TILE = 4 * PATCH  # side of one tile of the families that cut images into tiles
TILINGS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
WIDTH = 128
TOWER = {"hidden_size": 96, "intermediate_size": 240}
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.07,
}  # fmt: skip


def _train_tokenizer(texts: list[str], chat: list[str], special_tokens: tuple[str, ...]) -> Qwen2Tokenizer:
    """A byte-level tokenizer that knows the words of the texts, and each piece of the chat template as one token."""
    # The template's own words stand in every sample: as frequent as a text, each becomes one token.
    return Qwen2Tokenizer().train_new_from_iterator(
        texts + chat * len(texts), vocab_size=1024, new_special_tokens=list(special_tokens), show_progress=False
    )


def _qwen_tokenizer(texts: list[str], chat: list[str], more: tuple[str, ...] = ()) -> Qwen2Tokenizer:
    tokenizer = _train_tokenizer(texts, chat, (*QWEN_SPECIAL_TOKENS, *more))
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def _llama_tokenizer(texts: list[str], chat: list[str]) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    trained = _train_tokenizer(texts, chat, (*special.values(), "<image>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
    )
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    return tokenizer


def _write(
    out: Path, model_class: type[PreTrainedModel], config: PretrainedConfig, processor: ProcessorMixin, seed: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    text = config.get_text_config()
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _qwen_ids(tokenizer: Qwen2Tokenizer) -> tuple[dict[str, Any], dict[str, int]]:
    """Token numbers as a language model's configuration and as a whole model's take them."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIAL_TOKENS}
    stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    text = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": stops}
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    images = {f"{name.removesuffix('_pad')}_token_id": ids[f"<|{name}|>"] for name in names}
    return {**text, "pad_token_id": ids["<|endoftext|>"]}, images


def _qwen_processor(
    kind: type[ProcessorMixin], video_kind: type[BaseVideoProcessor], tokenizer: Qwen2Tokenizer, template: str
) -> ProcessorMixin:
    limits = {"shortest_edge": 48 * 48, "longest_edge": 288 * 288}
    patches = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": limits}
    return kind(Qwen2VLImageProcessor(**patches), tokenizer, video_kind(**patches), template)


def build_tiny_qwen2_vl(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny Qwen2-VL and its processor; `texts` train the tokenizer."""
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    tokenizer = _qwen_tokenizer(texts, chat, QWEN2_VL_BOX_TOKENS)
    processor = _qwen_processor(Qwen2VLProcessor, Qwen2VLVideoProcessor, tokenizer, qwen2_5_vl_chat_template)
    text, images = _qwen_ids(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2VLConfig(
        text_config={**TEXT, **text, "rope_parameters": rope},
        vision_config={
            "depth": 3, "embed_dim": 96, "hidden_size": WIDTH, "mlp_ratio": 2, "num_heads": 4, "patch_size": PATCH,
            "initializer_range": 0.07,
        },
        tie_word_embeddings=True,
        **images,
    )  # fmt: skip
    _write(out, Qwen2VLForConditionalGeneration, config, processor, seed)


def build_tiny_qwen2_5_vl(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny Qwen2.5-VL and its processor; `texts` train the tokenizer."""
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    tokenizer = _qwen_tokenizer(texts, chat)
    processor = _qwen_processor(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, tokenizer, qwen2_5_vl_chat_template)
    text, images = _qwen_ids(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **text, "rope_parameters": rope},
        vision_config={
            **TOWER, "depth": 3, "num_heads": 4, "patch_size": PATCH, "window_size": 96,
            "fullatt_block_indexes": [1, 2], "out_hidden_size": WIDTH, "tokens_per_second": 2,
            "initializer_range": 0.07,
        },
        tie_word_embeddings=True,
        **images,
    )  # fmt: skip
    _write(out, Qwen2_5_VLForConditionalGeneration, config, processor, seed)


def build_tiny_qwen3_vl(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny Qwen3-VL, with one deep-stacked layer, and its processor; `texts` train the tokenizer."""
    tokenizer = _qwen_tokenizer(texts, ["user\n", "assistant\n"])
    processor = _qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, tokenizer, qwen3_vl_chat_template)
    text, images = _qwen_ids(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, **text, "head_dim": 32, "rope_parameters": rope},
        vision_config={
            **TOWER, "depth": 3, "num_heads": 4, "patch_size": PATCH, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [1], "initializer_range": 0.07,
        },
        tie_word_embeddings=True,
        **images,
    )  # fmt: skip
    _write(out, Qwen3VLForConditionalGeneration, config, processor, seed)


def _llama_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    kinds = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{kind: getattr(tokenizer, kind) for kind in kinds}}


def build_tiny_llava(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny LLaVA-1.5 (96-pixel images, 64 tokens each) and its processor; `texts` train the tokenizer."""
    tokenizer = _llama_tokenizer(texts, ["USER: ", "ASSISTANT:"])
    image_processor = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    processor = LlavaProcessor(
        image_processor, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=templates.VICUNA, num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **TOWER, num_hidden_layers=3, num_attention_heads=4, image_size=96, patch_size=PATCH, projection_dim=96
        ),
        text_config=LlamaConfig(**{**TEXT, "num_key_value_heads": 4}, **_llama_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
    )
    _write(out, LlavaForConditionalGeneration, config, processor, seed)


def build_tiny_llava_next(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny LLaVA-NeXT on Mistral (tiles of 48 pixels) and its processor; `texts` train the tokenizer."""
    tokenizer = _llama_tokenizer(texts, ["[INST] ", " [/INST]"])
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=TILINGS
    )
    processor = LlavaNextProcessor(
        image_processor, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=templates.MISTRAL, num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            **TOWER, num_hidden_layers=3, num_attention_heads=4, image_size=TILE, patch_size=PATCH, projection_dim=96
        ),
        text_config=MistralConfig(**TEXT, sliding_window=None, **_llama_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=TILINGS,
        image_seq_length=(TILE // PATCH) ** 2,
    )
    _write(out, LlavaNextForConditionalGeneration, config, processor, seed)


def build_tiny_llava_onevision(out: Path, texts: list[str], seed: int) -> None:
    """Write a tiny LLaVA-OneVision (tiles of 48 pixels) and its processor; `texts` train the tokenizer."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    tokenizer = _train_tokenizer(texts, ["user ", "assistant\n"], special)
    tokenizer.eos_token = "<|im_end|>"
    size = {"height": TILE, "width": TILE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=TILINGS), tokenizer,
        LlavaOnevisionVideoProcessor(size=size), num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full", chat_template=templates.LLAVA_ONEVISION[0],
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            **TOWER, num_hidden_layers=3, num_attention_heads=4, image_size=TILE, patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            **TEXT, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=TILINGS,
        tie_word_embeddings=True,
    )  # fmt: skip
    _write(out, LlavaOnevisionForConditionalGeneration, config, processor, seed)
