"""Floating-point operations of a training step, by the field's convention.

Per parameter and token: 2 forward, 2 for the gradient of the activations, 2 for the gradient of the weight. A language
model under LoRA takes 4, fully trained 6; a frozen tower takes 2. Parameters are those of the linear layers; attention
scores are left out, and so are adapters.
"""

import math
from dataclasses import dataclass

from torch import nn

from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.trainable import own_name, whole_shape

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the name of the GPU


@dataclass(frozen=True)
class Work:
    """What a batch asks of the model: its tokens, those of them that stand for images, and those that are scored."""

    tokens: int
    image_tokens: int
    scored: int


@dataclass(frozen=True)
class FlopCount:
    """FLOP per unit of each kind of `Work`; the tower and the projector stand under the image tokens they make."""

    per_token: float
    per_image_token: float
    per_scored: float

    def __call__(self, work: Work) -> float:
        """FLOP of one forward and backward pass."""
        return self.per_token * work.tokens + self.per_image_token * work.image_tokens + self.per_scored * work.scored


def count_flops(model: nn.Module, backbone: Backbone) -> FlopCount:
    """The convention applied to a model that is ready to train; base weights count, adapters do not.

    A component gets gradients if it trains itself, or if something before it trains.
    """
    weights = dict.fromkeys(("vision_tower", "projector", "language_model", "lm_head"), 0)
    trains = dict.fromkeys(weights, False)
    full = dict.fromkeys(weights, False)
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # its copy trains and counts
            continue
        own = own_name(name)
        part = "lm_head" if own.startswith("lm_head") else component_of(own, backbone)
        trains[part] |= parameter.requires_grad
        if "lora_" in own:
            continue
        full[part] |= parameter.requires_grad
        if len(whole_shape(parameter)) > 1 and "embed_tokens" not in own and "position_embedding" not in own:
            weights[part] += math.prod(whole_shape(parameter))
    head = model.get_output_embeddings().weight  # a head that is tied to the embedding has no name of its own
    weights["lm_head"] = math.prod(whole_shape(head))
    full["lm_head"] = head.requires_grad

    def per_unit(part: str, backward: bool) -> float:
        return weights[part] * (2 + 2 * backward + 2 * full[part])

    tower = trains["vision_tower"]
    projector = tower or trains["projector"]
    return FlopCount(
        per_token=per_unit("language_model", backward=True),
        per_image_token=backbone.patches_per_image_token * per_unit("vision_tower", backward=tower)
        + per_unit("projector", backward=projector),
        per_scored=per_unit("lm_head", backward=True),
    )
