"""open_clip's vision transformers as transformers' `CLIPVisionModel`: configuration, weights, pictures, and a proof.

Both are the tower of CLIP (arXiv 2103.00020, section 2.4); they name its weights differently, and open_clip has
variants that the other does not know, which are refused.
"""

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.errors import InputError

TOLERANCE = 1e-4  # of 1 + the feature's size, in float32
GREY = 1.0  # of 255: how far a processor's picture may be from the tower's, on average

# What a tower must have of open_clip's options; every other value is a variant that CLIPVisionModel has not.
NEEDED: dict[str, Any] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "pool_type": "tok",
    "no_ln_pre": False,
    "act_kwargs": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
# open_clip's names of weights, and transformers'.
NAMES = (
    (r"class_embedding", r"embeddings.class_embedding"),
    (r"positional_embedding", r"embeddings.position_embedding.weight"),
    (r"conv1\.weight", r"embeddings.patch_embedding.weight"),
    (r"ln_pre\.(\w+)", r"pre_layrnorm.\1"),
    (r"ln_post\.(\w+)", r"post_layernorm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"encoder.layers.\1.mlp.fc2.\2"),
)
JOINED = r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)"  # queries, keys and values in one
TO_SHARED_SPACE = "proj"  # behind everything that LLaVA takes
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class ConvertedTower(NamedTuple):
    """A tower of open_clip in transformers' terms.

    Attributes:
        weights: By the names of `CLIPVisionModel`, float32.
        difference: Largest difference of its features from open_clip's, of 1 + the feature's size.
    """

    config: CLIPVisionConfig
    weights: dict[str, torch.Tensor]
    difference: float


def convert_tower(model: ContrastiveModel, name: str) -> ConvertedTower:
    """The vision tower of a CLIP.

    Args:
        name: Of the model, in messages.

    Raises:
        InputError: It is a ResNet or a variant that `CLIPVisionModel` has not, or its features would be others.
    """
    config = vision_config(model.config, name)
    weights = renamed({key: value.float().cpu() for key, value in model.model.visual.state_dict().items()})
    return ConvertedTower(config, weights, check_features(model, config, weights, name))


def vision_config(config: dict[str, Any], name: str) -> CLIPVisionConfig:
    """The configuration of a tower, from open_clip's `model_cfg`; raises [`InputError`] if it is another kind."""
    tower = CLIPVisionCfg(**config["vision_cfg"])
    wanted = "LLaVA takes plain vision transformers of CLIP, such as ViT-B-16 or ViT-L-14"
    if tower.timm_model_name or not isinstance(tower.layers, int):
        kind = f"timm's {tower.timm_model_name}" if tower.timm_model_name else "a ResNet"
        raise InputError(f"model {name}: its vision tower is {kind}; {wanted}")
    found = {option: value for option, value in vars(tower).items() if NEEDED.get(option, value) != value}
    if found:
        told = ", ".join(f"{option} is {value}, not {NEEDED[option]}" for option, value in found.items())
        raise InputError(f"model {name}: its vision tower is a variant ({told}); {wanted}")
    if not (isinstance(tower.image_size, int) and isinstance(tower.patch_size, int)):
        raise InputError(f"model {name}: its pictures or patches are no squares; {wanted}")
    return CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=int(tower.width * tower.mlp_ratio),
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.width // tower.head_width,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        hidden_act="quick_gelu" if config.get("quick_gelu") else "gelu",
        layer_norm_eps=(tower.norm_kwargs or {}).get("eps", 1e-5),
        projection_dim=config["embed_dim"],
    )


def renamed(visual: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's weights of a tower by the names of `CLIPVisionModel`; what it has no name for keeps its own."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in visual.items():
        if joined := re.fullmatch(JOINED, name):
            layer, kind = joined.groups()
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                weights[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = piece
        elif name != TO_SHARED_SPACE:
            fits = [re.sub(pattern, new, name) for pattern, new in NAMES if re.fullmatch(pattern, name)]
            weights[fits[0] if fits else name] = value
    return weights


@torch.inference_mode()
def check_features(
    model: ContrastiveModel, config: CLIPVisionConfig, weights: dict[str, torch.Tensor], name: str
) -> float:
    """Compare both towers on a random picture, in float32: what every layer gives, and the image's feature.

    Returns:
        The largest difference, of 1 + the feature's size.

    Raises:
        InputError: A weight is missing, too much or of another shape, or the difference is above `TOLERANCE`.
    """
    converted = CLIPVisionModel(config).eval()
    wanted = {key: value.shape for key, value in converted.state_dict().items()}
    found = {key: value.shape for key, value in weights.items()}
    if wanted != found:
        wrong = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise InputError(f"model {name}: its vision tower has no place in CLIPVisionModel (such as {wrong})")
    converted.load_state_dict(weights)
    picture = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    tower = model.model.visual
    theirs = tower.forward_intermediates(
        picture.to(model.device, tower.conv1.weight.dtype), output_fmt="NLC", output_extra_tokens=True
    )
    layers = zip(theirs["image_intermediates_prefix"], theirs["image_intermediates"], strict=True)
    reference = [torch.cat(parts, dim=1) for parts in layers] + [theirs["image_features"]]
    ours = converted(picture, output_hidden_states=True)
    features = [*ours.hidden_states[1:], ours.pooler_output @ tower.proj.float().cpu()]
    pairs = [(one.float().cpu(), other) for one, other in zip(reference, features, strict=True)]
    difference = max(((one - other).abs() / (1 + one.abs())).max().item() for one, other in pairs)
    if not difference <= TOLERANCE:  # a NaN is none
        raise InputError(
            f"model {name}: converted, its vision tower gives other features (by {difference:.1e} of 1 + their size, "
            f"{TOLERANCE:.0e} is allowed); nothing was written"
        )
    return difference


def image_processor(preprocess: PreprocessCfg, name: str) -> CLIPImageProcessor:
    """The processor of pictures as the tower saw them: squashed, cut to a square, or whole and padded with black.

    Where a picture is kept whole (`resize_mode` longest), open_clip rounds its sides and transformers cuts their
    fractions off: the picture may be smaller by a pixel, and the black margin wider.

    Raises:
        InputError: Its pictures are no squares, or padded with another colour.
    """
    side = preprocess.size if isinstance(preprocess.size, int) else preprocess.size[0]
    if not isinstance(preprocess.size, int) and set(preprocess.size) != {side}:
        raise InputError(f"model {name}: its pictures are no squares ({preprocess.size})")
    if preprocess.resize_mode == "longest" and preprocess.fill_color != 0:
        raise InputError(
            f"model {name}: pads its pictures with {preprocess.fill_color}, and LLaVA's processor with black; train "
            "the tower with resize_mode squash or shortest, or with black"
        )
    sizes = {
        "longest": {"max_height": side, "max_width": side},
        "shortest": {"shortest_edge": side},
        "squash": {"height": side, "width": side},
    }
    return CLIPImageProcessor(
        size=sizes[preprocess.resize_mode],
        crop_size={"height": side, "width": side},
        resample=INTERPOLATIONS.get(preprocess.interpolation, Image.Resampling.BICUBIC),
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
    )


def check_pictures(model: ContrastiveModel, processor: CLIPImageProcessor, name: str) -> float:
    """Compare what both make of a random picture, twice as wide as high and four times too large.

    Returns:
        The mean difference in grey values of 255: Pillow and torchvision resize alike, not equally.

    Raises:
        InputError: It is above `GREY`.
    """
    side = processor.crop_size["height"]
    noise = np.random.default_rng(0).integers(0, 256, (2 * side, 4 * side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    ours = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    std = torch.tensor(model.preprocess.std)[:, None, None]
    difference = ((ours - model.picture(picture)) * std * 255).abs().mean().item()
    if not difference <= GREY:
        raise InputError(
            f"model {name}: LLaVA's processor would show other pictures than the tower saw (by {difference:.1f} of "
            f"255 on average, {GREY} is allowed)"
        )
    return difference
