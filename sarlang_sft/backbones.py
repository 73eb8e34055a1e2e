"""Everything a model family needs, one row each; other code asks the row and never the model's name."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
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

# LLaVA-1.5's chat as its released template renders it, and the stop token after every answer, which that template
# leaves out: without it a tuned model never stops.
LLAVA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- 'USER: ' -}}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}{%- endfor -%}"
    "{%- else -%}"
    "{{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}{{- eos_token -}}{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


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
        box_convention: `absolute` pixels after the resize, `0-1000`, or `0-1`.
        patches_per_image_token: Patches of the vision tower behind one image token.
        positions: Position ids of a sequence that starts with its images, see `text_positions`.
        build_tiny: Writes a tiny model of the family with random weights and its processor to a folder.
    """

    model_class: type[PreTrainedModel]
    components: dict[str, tuple[str, ...]]
    never_adapt: tuple[str, ...]
    training_template: str
    image_token: str
    box_convention: str
    patches_per_image_token: int
    positions: Callable[[ProcessorMixin, torch.Tensor, torch.Tensor | None], torch.Tensor]
    build_tiny: Callable[[Path, list[str], int], None]


def text_positions(processor: ProcessorMixin, ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """Position ids of a sequence: 0, 1, 2 ...

    Args:
        ids: (T,) int64 tokens, every image as its run of image tokens.
        grids: (n, 3) int64 patches of each of its images in time, height and width, where the processor gives them.

    Returns:
        (T,) int64; families with M-RoPE return (3, T).
    """
    return torch.arange(len(ids))


def mrope_positions(processor: ProcessorMixin, ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """(3, T) position ids in time, height and width (Qwen2-VL, arXiv 2409.12191, section 2.1); see `text_positions`.

    The same as the model's `get_rope_index`, without the model: a loader worker has none.
    """
    merge = processor.image_processor.merge_size
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    is_image = (ids == image_token_id).tolist()
    pieces: list[torch.Tensor] = []
    done = start = 0
    for time, height, width in [] if grids is None else grids.tolist():
        first = is_image.index(True, done)
        pieces.append(torch.arange(first - done).expand(3, -1) + start)
        start += first - done
        shape = (time, height // merge, width // merge)
        pieces.append(torch.cartesian_prod(*[torch.arange(side) for side in shape]).T + start)
        start += max(shape[1:])
        done = first + math.prod(shape)
    pieces.append(torch.arange(len(ids) - done).expand(3, -1) + start)
    return torch.cat(pieces, dim=1)


def _train_tokenizer(texts: list[str], chat: list[str], special_tokens: tuple[str, ...]) -> Qwen2Tokenizer:
    """A byte-level tokenizer that knows the words of the texts, and each piece of the chat template as one token."""
    # The template's own words stand in every sample: as frequent as a text, each becomes one token.
    return Qwen2Tokenizer().train_new_from_iterator(
        texts + chat * len(texts), vocab_size=1024, new_special_tokens=list(special_tokens), show_progress=False
    )


def build_tiny_qwen2_5_vl(out: Path, texts: list[str], seed: int) -> None:
    """Write a Qwen2.5-VL of about a million random parameters with 12-pixel patches; `texts` train its tokenizer.

    Weights start at a standard deviation near 1 / sqrt(width): the family's 0.02 suits widths of thousands and lets a
    model of width 128 learn several times slower.
    """
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    tokenizer = _train_tokenizer(texts, chat, QWEN_SPECIAL_TOKENS)
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


def build_tiny_llava(out: Path, texts: list[str], seed: int) -> None:
    """Write a LLaVA-1.5 of about a million random parameters: 12-pixel patches of 96-pixel images, 64 tokens each."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    trained = _train_tokenizer(texts, ["USER: ", "ASSISTANT:"], (*special.values(), "<image>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    begin = [("<s>", ids["bos_token"])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    processor = LlavaProcessor(
        image_processor, tokenizer, patch_size=12, vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=96, intermediate_size=240, num_hidden_layers=3, num_attention_heads=4, image_size=96,
            patch_size=12, projection_dim=96,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096, initializer_range=0.07,
            **{f"{name}_id": value for name, value in ids.items()},
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["eos_token"]
    model.generation_config.pad_token_id = ids["pad_token"]
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
        patches_per_image_token=4,
        positions=mrope_positions,
        build_tiny=build_tiny_qwen2_5_vl,
    ),
    "llava": Backbone(
        model_class=LlavaForConditionalGeneration,
        components={
            "vision_tower": ("model.vision_tower",),
            "projector": ("model.multi_modal_projector",),
            "language_model": ("model.language_model", "lm_head"),
        },
        never_adapt=("lm_head", "embed_tokens"),
        training_template=LLAVA_TEMPLATE,
        image_token="<image>",
        box_convention="0-1",
        patches_per_image_token=1,
        positions=text_positions,
        build_tiny=build_tiny_llava,
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
    model_name_or_path: str, backbone: Backbone, dtype: str, attn_implementation: str | dict[str, str] = "sdpa"
) -> PreTrainedModel:
    """The model's weights; under ZeRO-3 every rank keeps its part only.

    Args:
        attn_implementation: One name for the whole model, or a name for its `text_config` and its `vision_config`.

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
        InputError: The folder has no processor, the family has no pixel budget, or its chat template asks in other
            words than the family's training template, so that a released model would be asked otherwise.
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
        size = processor.image_processor.size
        if "longest_edge" not in size:
            raise InputError(f"max_pixels {max_pixels}: this family resizes every image to one size; leave it out")
        smallest = size["shortest_edge"]
        if max_pixels < smallest:
            raise InputError(f"max_pixels {max_pixels}: below the processor's smallest image of {smallest} pixels")
        processor.image_processor.size["longest_edge"] = max_pixels
    probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    own, ours = (
        processor.tokenizer.apply_chat_template(
            probe, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        for template in (processor.chat_template, backbone.training_template)
    )
    if own != ours:
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
