"""What training takes of a GPU's memory, from the model's configuration alone: no weight is loaded."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin

from sarlang_sft.adapters import lora_config
from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.errors import InputError
from sarlang_sft.planning_rehearsal import Batch, StepBytes, rehearse
from sarlang_sft.planning_standins import COUNTED, Precision
from sarlang_sft.trainable import (
    Trainable,
    choose_trainable,
    freeze_all_but,
    own_name,
    run_frozen_without_gradient,
)
from sarlang_sft.tuning import TuningArguments

# Bytes that the optimiser keeps per trained number; 8-bit states have one float32 for every 256 numbers.
STATE_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2 + 2 * 4 / 256,
    "adamw_bnb_8bit": 2 + 2 * 4 / 256,
    "paged_adamw_8bit": 2 + 2 * 4 / 256,
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SMALL = 4096  # numbers of a parameter below which bitsandbytes keeps its states in 32 bits
# NF4, arXiv 2305.14314: 4 bits, 8 bits for every 64 numbers, 32 bits for every 256 of those; LLM.int8: rows' scales.
QUANTISED_BYTES = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}
CONTEXT = 0.8e9  # assumed: the CUDA context, kernels and cuBLAS's workspace
COMMUNICATION = 0.8e9  # assumed: NCCL's channels and buffers, where there are several ranks
FRAGMENTATION = 0.05  # assumed: of what a step makes and frees


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed cuts a training; stage None: no DeepSpeed, every rank holds everything (DDP)."""

    stage: int | None = None
    offload_optimiser: bool = False
    offload_weights: bool = False
    bucket: float = 5e8
    live: float = 1e9

    def __str__(self) -> str:
        if self.stage is None:
            return "DDP"
        offloaded = [
            name for name, on in (("optimiser", self.offload_optimiser), ("weights", self.offload_weights)) if on
        ]
        return f"ZeRO-{self.stage}" + (f", {' and '.join(offloaded)} on the CPU" if offloaded else "")


def read_zero(path: Path | None) -> Zero:
    """The parts of a DeepSpeed configuration that memory depends on; numbers left out are DeepSpeed's defaults."""
    if path is None:
        return Zero()
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"deepspeed {path}: no JSON file with a `zero_optimization`: {error}") from error

    def offloaded(part: str) -> bool:
        return given.get(part, {}).get("device", "none") != "none"

    return Zero(
        given.get("stage", 0),
        offloaded("offload_optimizer"),
        offloaded("offload_param"),
        given.get("reduce_bucket_size", 5e8),
        given.get("stage3_max_live_parameters", 1e9),
    )


@dataclass(frozen=True)
class Setup:
    """What decides on memory.

    Attributes:
        dtype: Of the weights as they are loaded: `bfloat16`, `float16`, `float32` or `auto`.
        autocast: Compute in bfloat16 (`bf16: true`).
        checkpointed: Components whose layers compute their activations twice instead of keeping them.
        batch: What one rank computes at once.
        dense_mask: The mask of image trees is stored in full (SDPA).
        accumulates: A step has several batches, so that gradients outlive one.
    """

    model_name_or_path: str
    dtype: str
    tuning: TuningArguments
    autocast: bool
    checkpointed: tuple[str, ...]
    batch: Batch
    dense_mask: bool
    accumulates: bool
    optimiser: str
    zero: Zero
    ranks: int
    on_cuda: bool = True


@dataclass(frozen=True)
class Planned:
    """A model on the meta device as it would train."""

    model: PreTrainedModel | PeftModel
    trainable: Trainable
    quantised: list[nn.Module]


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by what they are for, its peak, and bytes on the host."""

    parts: dict[str, int]
    step: StepBytes
    host: int

    @property
    def allocated(self) -> int:
        """What torch allocates at the worst moment."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """With the CUDA context, communication and fragmentation."""
        several = self.parts["communication buckets"] > 0
        return int(self.allocated + CONTEXT + COMMUNICATION * several + FRAGMENTATION * self.step.activations)


def build_planned(setup: Setup, backbone: Backbone) -> Planned:
    """The model with adapters and the types of its weights as training makes them, without storage."""
    config = AutoConfig.from_pretrained(setup.model_name_or_path)
    with torch.device("meta"):
        model = backbone.model_class(config)
    model.set_attn_implementation(COUNTED)
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
        if setup.zero.stage is not None and setup.autocast:
            parameter.data = parameter.data.to(torch.bfloat16)  # DeepSpeed keeps another copy in 32 bits
        elif setup.zero.stage is None and parameter.requires_grad:
            parameter.data = parameter.data.float()
    run_frozen_without_gradient(model, backbone)
    names = set(trainable.quantised)
    quantised = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and own_name(f"{name}.weight").removesuffix(".weight") in names
    ]
    return Planned(model, trainable, quantised)


def plan_memory(setup: Setup, planned: Planned, processor: ProcessorMixin, backbone: Backbone) -> Memory:
    """Bytes of every rank.

    Raises:
        InputError: The optimiser is unknown, or ZeRO-3 would cut quantised weights.
    """
    if setup.optimiser not in STATE_BYTES:
        raise InputError(f"optim {setup.optimiser}: the planner knows {', '.join(STATE_BYTES)}")
    zero, ranks, bits = setup.zero, setup.ranks, setup.tuning.bits()
    if zero.stage == 3 and bits:
        raise InputError("deepspeed: ZeRO-3 cannot cut quantised weights; use deepspeed_configs/zero2.json")
    packed = {id(layer.weight) for layer in planned.quantised}
    trained = [parameter for parameter in planned.model.parameters() if parameter.requires_grad]
    of_weights = Counter[str]()
    for name, parameter in planned.model.named_parameters():
        size = QUANTISED_BYTES[bits] if id(parameter) in packed else parameter.element_size()
        of_weights[component_of(own_name(name).partition(".lora_")[0], backbone)] += int(parameter.numel() * size)
    numbers = sum(parameter.numel() for parameter in trained)
    gradients = _bytes(trained)
    whole = sum(parameter.numel() for parameter in planned.model.parameters())

    step = rehearse(
        planned.model,
        processor,
        setup.batch,
        Precision(torch.bfloat16 if setup.autocast and zero.stage is None else None, setup.dense_mask, setup.on_cuda),
        lambda name: component_of(own_name(name), backbone) in setup.checkpointed,
        planned.quantised,
    )
    cut = {stage: ranks if (zero.stage or 0) >= stage else 1 for stage in (1, 2, 3)}
    states = sum(_states(parameter, setup.optimiser) for parameter in trained)
    if zero.stage is not None:
        states += 4 * numbers  # the weights that the optimiser steps on
    if zero.stage is None and not setup.accumulates:
        activations = max(step.peak, gradients) - gradients  # no gradient is there when activations are at their peak
    else:
        activations = step.activations
    if zero.stage is not None and not zero.offload_optimiser:
        activations = max(activations, 4 * numbers // cut[1])  # the gradients in 32 bits, when the optimiser steps
    gathered = int(min(zero.live, whole) * 2) if zero.stage == 3 else 0
    bucket = int(min(zero.bucket, numbers) * 2)
    buckets = 0 if ranks == 1 else gradients if zero.stage is None else 2 * bucket
    parts = {f"weights, {part.replace('_', ' ')}": size // cut[3] for part, size in of_weights.items()}
    parts |= {
        "weights gathered for the layers at work": gathered,
        "optimiser": states // cut[1],
        "gradients": gradients // cut[2],
        "communication buckets": buckets,
        "activations": activations,
    }
    host = 0
    if zero.offload_optimiser:
        host += parts["optimiser"] * ranks
        parts["optimiser"] = 0
    if zero.offload_weights:
        for part in [part for part in parts if part.startswith("weights, ")]:
            host += parts[part] * ranks
            parts[part] = 0
    return Memory(parts, step, host)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _states(parameter: torch.Tensor, optimiser: str) -> int:
    small = parameter.numel() < SMALL and "8bit" in optimiser
    return math.ceil(parameter.numel() * (8 if small else STATE_BYTES[optimiser]))
