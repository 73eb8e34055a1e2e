"""Everything a model family needs, one row each; other code asks the row and never the model's name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from trl.chat_template_utils import qwen2_5_vl_chat_template, qwen2_5_vl_training_chat_template

from sarlang_sft.errors import InputError

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Backbone:
    """One family.

    Attributes:
        model_class: Its transformers class.
        components: Module prefixes of the vision tower, the projector and the language model. A module belongs to the
            component with the longest prefix that fits it.
        never_adapt: Modules that must never get an adapter, by the end of their name.
        training_template: The family's chat template with generation markers around what is supervised.
        image_token: The placeholder that the processor repeats for every image token.
        box_convention: `absolute` pixels after the resize, or `0-1000`.
        build_tiny: Writes a tiny model of the family with random weights and its processor to a folder.
    """

    model_class: type[PreTrainedModel]
    components: dict[str, tuple[str, ...]]
    never_adapt: tuple[str, ...]
    training_template: str
    image_token: str
    box_convention: str
    build_tiny: Callable[[Path, list[str], int], None]


def build_tiny_qwen2_5_vl(out: Path, texts: list[str], seed: int) -> None:
    """Write a Qwen2.5-VL of about a million random parameters with 12-pixel patches; `texts` train its tokenizer.

    Weights start at a standard deviation near 1 / sqrt(width): the family's 0.02 suits widths of thousands and lets a
    model of width 128 learn several times slower.
    """
    # The chat template's own words stand in every sample: as frequent as a text, each becomes one token.
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * len(texts)
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts + chat, vocab_size=1024, new_special_tokens=list(QWEN_SPECIAL_TOKENS), show_progress=False
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIAL_TOKENS}
    tokenizer.eos_token = "<|im_end|>"
    limits = {"shortest_edge": 48 * 48, "longest_edge": 288 * 288}
    image_processor = Qwen2VLImageProcessor(patch_size=12, merge_size=2, temporal_patch_size=2, size=limits)
    video_processor = Qwen2VLVideoProcessor(patch_size=12, merge_size=2, temporal_patch_size=2, size=limits)
    processor = Qwen2_5_VLProcessor(image_processor, tokenizer, video_processor, qwen2_5_vl_chat_template)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "initializer_range": 0.07,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3, "hidden_size": 96, "intermediate_size": 240, "num_heads": 4, "patch_size": 12,
            "window_size": 96, "fullatt_block_indexes": [1, 2], "out_hidden_size": 128, "tokens_per_second": 2,
            "initializer_range": 0.07,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(out)
    processor.save_pretrained(out)


BACKBONES = {
    "qwen2_5_vl": Backbone(
        model_class=Qwen2_5_VLForConditionalGeneration,
        components={
            "vision_tower": ("model.visual",),
            "projector": ("model.visual.merger",),
            "language_model": ("model.language_model", "lm_head"),
        },
        never_adapt=("lm_head", "embed_tokens"),
        training_template=qwen2_5_vl_training_chat_template,
        image_token="<|image_pad|>",
        box_convention="absolute",
        build_tiny=build_tiny_qwen2_5_vl,
    ),
}


def find_backbone(model_name_or_path: str) -> Backbone:
    """The row of the model's family, read from its `config.json` alone; raises [`InputError`] if there is none."""
    try:
        local = Path(model_name_or_path) / "config.json"
        path = local if Path(model_name_or_path).is_dir() else Path(hf_hub_download(model_name_or_path, "config.json"))
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"model {model_name_or_path}: neither a folder with a config.json nor a model that the hub "
            f"could give ({type(error).__name__})"
        ) from error
    if model_type not in BACKBONES:
        raise InputError(
            f"model {model_name_or_path}: family `{model_type}` is not supported; supported are {', '.join(BACKBONES)}"
        )
    return BACKBONES[model_type]


def load_weights(
    model_name_or_path: str, backbone: Backbone, dtype: str, attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """The model's weights; under ZeRO-3 every rank keeps its part only.

    Raises:
        InputError: They cannot be read, or a tensor is missing, of another shape, or unknown to the family.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype `{dtype}`: choose one of {', '.join(DTYPES)}")
    try:
        model, report = backbone.model_class.from_pretrained(
            model_name_or_path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {model_name_or_path}: {error}") from error
    wrong = {kind: keys for kind, keys in report.items() if keys}
    if wrong:
        listed = "; ".join(f"{kind}: {len(keys)} (such as {min(map(str, keys))})" for kind, keys in wrong.items())
        raise InputError(f"model {model_name_or_path}: its checkpoint does not fit the family: {listed}")
    # Saving reverts the key conversions of loading. Under ZeRO-3 transformers also keeps those that matched no key,
    # and would write `model.model.*`.
    model._weight_conversions = [conversion for conversion in model._weight_conversions if conversion.was_used()]
    return model


def load_processor(model_name_or_path: str, backbone: Backbone, max_pixels: int | None = None) -> ProcessorMixin:
    """The model's processor with our pixel budget.

    Args:
        max_pixels: Upper bound of width x height after the resize; None keeps the processor's own.

    Raises:
        InputError: The folder has no processor, or its chat template renders other text than the family's training
            template, so that training and inference would differ.
    """
    try:
        processor = AutoProcessor.from_pretrained(model_name_or_path)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model_name_or_path}: no processor found: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise InputError(
            f"model {model_name_or_path}: has a tokenizer but no image processor (preprocessor_config.json is missing)"
        )
    if max_pixels is not None:
        smallest = processor.image_processor.size["shortest_edge"]
        if max_pixels < smallest:
            raise InputError(f"max_pixels {max_pixels}: below the processor's smallest image of {smallest} pixels")
        processor.image_processor.size["longest_edge"] = max_pixels
    probe = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]},
        {"role": "assistant", "content": "Here."},
    ]
    render = processor.tokenizer.apply_chat_template
    own = render(probe, chat_template=processor.chat_template, tokenize=False)
    if own != render(probe, chat_template=backbone.training_template, tokenize=False):
        raise InputError(
            f"model {model_name_or_path}: its chat template differs from the family's; restore the "
            "original chat_template of the model"
        )
    return processor


def component_of(name: str, backbone: Backbone) -> str:
    """The component a module or parameter belongs to: `vision_tower`, `projector` or `language_model`."""
    fits = [
        (len(prefix), component)
        for component, prefixes in backbone.components.items()
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    if not fits:
        raise ValueError(f"{name} belongs to no component of the family; correct its row in BACKBONES")
    return max(fits)[1]


def linear_modules(model: nn.Module, backbone: Backbone, component: str) -> list[str]:
    """Names of the linear layers of a component that may get an adapter."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.endswith(backbone.never_adapt)
        and component_of(name, backbone) == component
    ]
