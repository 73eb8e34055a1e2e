"""Everything a model family needs, one row each; other code asks the row and never the model's name."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils.chat_template_utils import render_jinja_template

from sarlang_sft import boxes, templates, tiny, views
from sarlang_sft.boxes import BoxConvention, Frame
from sarlang_sft.errors import InputError
from sarlang_sft.views import View


@dataclass(frozen=True)
class Backbone:
    """One family.

    Attributes:
        model_class: Its transformers class.
        recipes: The recipes that tune it: `qwen` or `llava`.
        components: Module prefixes of the vision tower, the projector and the language model. A module belongs to the
            component with the longest prefix that fits it.
        unused: Prefixes of the modules that the configured model never runs: they get no gradient.
        never_adapt: Modules that must never get an adapter, by the end of their name.
        training_templates: Chat templates of its released models with generation markers around what is supervised.
        image_token: The placeholder that the processor repeats for every image token.
        box_convention: How it writes boxes.
        frame: The picture that its processor makes of an image of (width, height) pixels.
        views: The pictures that its vision tower gets of the n-th image in the processor's tensors, the whole first.
        patches_per_image_token: Patches of the vision tower behind one image token.
        positions: Position ids of a sequence that starts with its images, see `text_positions`.
        build_tiny: Writes a tiny model of the family with random weights and its processor to a folder.
    """

    model_class: type[PreTrainedModel]
    recipes: str
    components: dict[str, tuple[str, ...]]
    unused: Callable[[PretrainedConfig], tuple[str, ...]]
    never_adapt: tuple[str, ...]
    training_templates: tuple[str, ...]
    image_token: str
    box_convention: BoxConvention
    frame: Callable[[ProcessorMixin, int, int], Frame]
    views: Callable[[ProcessorMixin, dict[str, torch.Tensor], int], list[View]]
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


def smart_resized(processor: ProcessorMixin, width: int, height: int) -> Frame:
    """Qwen-VL: the nearest multiples of the pixels behind a token, within the pixel budget."""
    images = processor.image_processor
    factor = images.patch_size * images.merge_size
    size = smart_resize(height, width, factor, images.size["shortest_edge"], images.size["longest_edge"])
    return Frame.of(width, height).resized(size[1], size[0])


def square(processor: ProcessorMixin, width: int, height: int) -> Frame:
    """LLaVA-1.5: resized as its processor is told, then cut to the tower's square, or padded to it.

    Released models resize the short side and lose the ends of the long one; recipes/put_tower.py also writes
    processors that squash an image, or keep it whole.
    """
    wanted, crop = processor.image_processor.size, processor.image_processor.crop_size
    if "height" in wanted:
        size = (wanted["width"], wanted["height"])
    elif "max_height" in wanted:
        scale = min(wanted["max_height"] / height, wanted["max_width"] / width)
        size = (int(width * scale), int(height * scale))
    else:
        side = wanted["shortest_edge"]
        long = max(width, height) * side // min(width, height)
        size = (side, long) if width <= height else (long, side)
    return Frame.of(width, height).resized(*size).centred(crop["width"], crop["height"])


def whole_image(processor: ProcessorMixin, width: int, height: int) -> Frame:
    """Families that show the whole image and its tiles."""
    return Frame.of(width, height)


def nothing_unused(config: PretrainedConfig) -> tuple[str, ...]:
    """Families that run all of their modules."""
    return ()


def behind_the_features(config: PretrainedConfig) -> tuple[str, ...]:
    """LLaVA takes its image features in front of the tower's last norm, most models also of its last layer."""
    layers = config.vision_config.num_hidden_layers
    features = config.vision_feature_layer
    last = max(layer % (layers + 1) for layer in ([features] if isinstance(features, int) else features))
    behind = [f"model.vision_tower.encoder.layers.{layer}" for layer in range(last, layers)]
    return (*behind, "model.vision_tower.post_layernorm", "model.vision_tower.head")


_QWEN = {
    "vision_tower": ("model.visual",),
    "projector": ("model.visual.merger",),
    "language_model": ("model.language_model", "lm_head"),
}
_LLAVA = {
    "vision_tower": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "language_model": ("model.language_model", "lm_head"),
}
# One vector that ends every row of image tokens: an embedding, so it goes with the language model.
_LLAVA_TILED = {**_LLAVA, "language_model": (*_LLAVA["language_model"], "model.image_newline")}

BACKBONES = {
    "qwen2_vl": Backbone(
        model_class=Qwen2VLForConditionalGeneration,
        recipes="qwen",
        components=_QWEN,
        unused=nothing_unused,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.QWEN2_VL,
        image_token="<|image_pad|>",
        box_convention=boxes.QWEN2_VL,
        frame=smart_resized,
        views=views.joined_patches,
        patches_per_image_token=4,
        positions=mrope_positions,
        build_tiny=tiny.build_tiny_qwen2_vl,
    ),
    "qwen2_5_vl": Backbone(
        model_class=Qwen2_5_VLForConditionalGeneration,
        recipes="qwen",
        components=_QWEN,
        unused=nothing_unused,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.QWEN2_5_VL,
        image_token="<|image_pad|>",
        box_convention=boxes.PIXELS,
        frame=smart_resized,
        views=views.joined_patches,
        patches_per_image_token=4,
        positions=mrope_positions,
        build_tiny=tiny.build_tiny_qwen2_5_vl,
    ),
    "qwen3_vl": Backbone(
        model_class=Qwen3VLForConditionalGeneration,
        recipes="qwen",
        components={**_QWEN, "projector": ("model.visual.merger", "model.visual.deepstack_merger_list")},
        unused=nothing_unused,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.QWEN3_VL,
        image_token="<|image_pad|>",
        box_convention=boxes.THOUSANDTHS,
        frame=smart_resized,
        views=views.joined_patches,
        patches_per_image_token=4,
        positions=mrope_positions,
        build_tiny=tiny.build_tiny_qwen3_vl,
    ),
    "llava": Backbone(
        model_class=LlavaForConditionalGeneration,
        recipes="llava",
        components=_LLAVA,
        unused=behind_the_features,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.LLAVA,
        image_token="<image>",
        box_convention=boxes.FRACTIONS,
        frame=square,
        views=views.one_picture,
        patches_per_image_token=1,
        positions=text_positions,
        build_tiny=tiny.build_tiny_llava,
    ),
    "llava_next": Backbone(
        model_class=LlavaNextForConditionalGeneration,
        recipes="llava",
        components=_LLAVA_TILED,
        unused=behind_the_features,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.LLAVA_NEXT,
        image_token="<image>",
        box_convention=boxes.FRACTIONS,
        frame=whole_image,
        views=views.overview_and_tiles,
        patches_per_image_token=1,
        positions=text_positions,
        build_tiny=tiny.build_tiny_llava_next,
    ),
    "llava_onevision": Backbone(
        model_class=LlavaOnevisionForConditionalGeneration,
        recipes="llava",
        components=_LLAVA_TILED,
        unused=behind_the_features,
        never_adapt=("lm_head", "embed_tokens"),
        training_templates=templates.LLAVA_ONEVISION,
        image_token="<image>",
        box_convention=boxes.FRACTIONS,
        frame=whole_image,
        views=views.overview_and_tiles,
        patches_per_image_token=1,
        positions=text_positions,
        build_tiny=tiny.build_tiny_llava_onevision,
    ),
}

REFUSED = {
    "qwen3_5": "its linear-attention layers carry a state instead of a mask, and its templates are not verified",
    "qwen3_5_moe": "its linear-attention layers carry a state instead of a mask, and its templates are not verified",
    "qwen3_vl_moe": "its experts are no linear layers: adapters and quantisation would pass them over",
}


def find_backbone(model_name_or_path: str, recipes: str | None = None) -> Backbone:
    """The row of the model's family, read from its `config.json` alone.

    Args:
        recipes: The recipes that ask: `qwen` or `llava`.

    Raises:
        InputError: There is no model, its family has no row, or other recipes are for it.
    """
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
        why = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
        raise InputError(
            f"model {model_name_or_path}: family `{model_type}` is not supported{why}; supported are "
            f"{', '.join(BACKBONES)}"
        )
    backbone = BACKBONES[model_type]
    if recipes and backbone.recipes != recipes:
        raise InputError(
            f"model {model_name_or_path}: is a {model_type}; tune it with recipes/{backbone.recipes}_lora.py or "
            f"recipes/{backbone.recipes}_full.py"
        )
    return backbone


def training_template(processor: ProcessorMixin, backbone: Backbone) -> str:
    """The family's template that asks in the words of the model's own: otherwise a released model is asked otherwise.

    Raises:
        ValueError: None of them does.
    """
    return _training_template(processor.chat_template, backbone.training_templates)


@cache
def _training_template(own: str, ours: tuple[str, ...]) -> str:
    probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    [wanted], _ = render_jinja_template([probe], chat_template=own, add_generation_prompt=True)
    for template in ours:
        [asked], _ = render_jinja_template([probe], chat_template=template, add_generation_prompt=True)
        if asked == wanted:
            return template
    raise ValueError(
        "its chat template asks in other words than those verified for its family; restore the original "
        "chat_template, or add a training template to sarlang_sft/templates.py"
    )


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
