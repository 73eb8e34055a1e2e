"""A model on PyTorch's meta device as it would train: modules, adapters and types, and no weight."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from sarlang_sft.adapters import lora_config
from sarlang_sft.planning.published import Architecture
from sarlang_sft.planning.sharding import Sharding
from sarlang_sft.planning.standins import COUNTED, COUNTED_WINDOWS
from sarlang_sft.trainable import (
    Trainable,
    choose_trainable,
    freeze_all_but,
    own_name,
    run_frozen_without_gradient,
)
from sarlang_sft.tuning import TuningArguments

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Batch(NamedTuple):
    """What a device computes at once: rows of equally many tokens, the images in all of them, scored tokens a row."""

    rows: int
    tokens: int
    images: int
    width: int
    height: int
    scored: int


@dataclass(frozen=True)
class Setup:
    """What decides on memory.

    Attributes:
        dtype: Of the weights as they are loaded: `bfloat16`, `float16`, `float32` or `auto`.
        autocast: Compute in 16 bits (`bf16: true`).
        checkpointed: Components whose layers compute their activations twice instead of keeping them.
        batch: What one rank computes at once.
        trees: Rows hold image trees up to a number of tokens, instead of one dialogue each.
        dense_mask: The mask of image trees is stored in full (SDPA).
        accumulates: A step has several batches, so that gradients outlive one.
    """

    dtype: str
    tuning: TuningArguments
    autocast: bool
    checkpointed: tuple[str, ...]
    batch: Batch
    trees: bool
    dense_mask: bool
    accumulates: bool
    optimiser: str
    sharding: Sharding
    ranks: int
    on_cuda: bool = True

    @property
    def casts_weights(self) -> bool:
        """The engine keeps 16-bit weights to compute with, and those that train in 32 bits besides."""
        return self.sharding.engine != "DDP" and self.autocast


@dataclass(frozen=True)
class PlannedModel:
    """The model, what trains of it, and its layers of 4 or 8 bits."""

    model: PreTrainedModel | PeftModel
    trainable: Trainable
    quantised: list[nn.Module]

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that get gradients."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)


def build_planned(setup: Setup, architecture: Architecture) -> PlannedModel:
    """The model with adapters and the types of its weights as training makes them, without storage."""
    config, backbone = copy.deepcopy(architecture.config), architecture.backbone
    with torch.device("meta"):
        model = backbone.model_class(config)
    model.set_attn_implementation(COUNTED)
    if setup.on_cuda:
        model.config.vision_config._attn_implementation = COUNTED_WINDOWS
    model.to({**DTYPES, "auto": config.dtype or torch.float32}[setup.dtype])
    trainable = choose_trainable(model, backbone, setup.tuning)
    adapters = lora_config(model, backbone, trainable, setup.tuning)
    if adapters:
        adapters.init_lora_weights = True  # pissa and eva need weights
        with torch.device("meta"):
            model = get_peft_model(model, adapters)
    else:
        freeze_all_but(model, trainable)
    for parameter in model.parameters():
        if setup.casts_weights:
            parameter.data = parameter.data.to(torch.bfloat16)
        elif setup.sharding.engine == "DDP" and parameter.requires_grad:
            parameter.data = parameter.data.float()
    run_frozen_without_gradient(model, backbone)
    names = set(trainable.quantised)
    quantised = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and own_name(f"{name}.weight").removesuffix(".weight") in names
    ]
    return PlannedModel(model, trainable, quantised)
