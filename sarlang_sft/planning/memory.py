"""What training takes of a rank's memory, by what it is for."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.backbones import component_of
from sarlang_sft.errors import InputError
from sarlang_sft.planning.model import PlannedModel, Setup
from sarlang_sft.planning.published import Architecture
from sarlang_sft.planning.rehearsal import StepBytes, rehearse
from sarlang_sft.planning.standins import Precision
from sarlang_sft.planning.states import pageable_bytes, quantised_bytes, state_bytes
from sarlang_sft.trainable import own_name

CONTEXT = 0.8e9  # assumed: the CUDA context, kernels and cuBLAS's workspace
COMMUNICATION = 0.8e9  # assumed: NCCL's channels and buffers, where there are several ranks
FRAGMENTATION = 0.05  # assumed: of what a step makes and frees
GATHERED = "weights gathered for the layers at work"
BUCKETS = "communication buckets"
ACCUMULATED = "gradients, whole while they add up"


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by what they are for.

    Attributes:
        step: Of the activations.
        host: Bytes in the memory of the CPU, of one rank.
        pageable: Of the optimiser's states, what may move to the CPU when the GPU is full.
        reserved: Beside what torch allocates: CUDA's context, communication, fragmentation.
    """

    parts: dict[str, int]
    step: StepBytes
    host: int
    pageable: int
    reserved: int

    @property
    def allocated(self) -> int:
        """What torch allocates at the worst moment."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """What must be free on the device."""
        return self.allocated + self.reserved


def plan_memory(setup: Setup, planned: PlannedModel, architecture: Architecture) -> Memory:
    """Bytes of every rank; docs/planner.md says where each formula is from.

    Raises:
        InputError: The optimiser is unknown, or ZeRO-3 or FSDP2 would cut quantised weights.
    """
    sharding, ranks = setup.sharding, setup.ranks
    if sharding.stage == 3 and setup.tuning.bits():
        option = "fsdp" if sharding.engine == "FSDP2" else "deepspeed"
        raise InputError(f"{option}: {sharding} cannot cut quantised weights; use deepspeed_configs/zero2.json")
    trained = list(planned.trained())
    numbers = sum(parameter.numel() for parameter in trained)
    # FSDP2 steps on its weights of 32 bits and has their gradients so; DeepSpeed keeps a copy for the optimiser.
    fsdp2 = sharding.engine == "FSDP2" and setup.casts_weights
    gradients = 4 * numbers if fsdp2 else _bytes(trained)
    states = sum(state_bytes(parameter.numel(), setup.optimiser) for parameter in trained)
    pageable = sum(pageable_bytes(parameter.numel(), setup.optimiser) for parameter in trained)
    if sharding.engine == "ZeRO":
        states += 4 * numbers
    optimiser_ranks = sharding.ranks_of(1, ranks)

    parts = {f"weights, {part}": size for part, size in _weights(setup, planned, architecture).items()}
    parts[GATHERED] = _gathered(setup, planned)
    parts["optimiser"] = states // optimiser_ranks
    parts["gradients"] = gradients // sharding.ranks_of(2, ranks)
    if sharding.engine == "FSDP2" and setup.accumulates:  # it reduces nothing before the last batch of a step
        parts[ACCUMULATED] = (2 if setup.casts_weights else 4) * numbers
    parts[BUCKETS] = _buckets(setup, planned, gradients)
    step = rehearse(
        planned.model,
        architecture.processor,
        setup.batch,
        Precision(
            torch.bfloat16 if setup.autocast and not setup.casts_weights else None, setup.dense_mask, setup.on_cuda
        ),
        lambda name: component_of(own_name(name), architecture.backbone) in setup.checkpointed,
        planned.quantised,
    )
    parts["activations"] = _activations(setup, step, gradients, numbers)
    host = 0
    offloaded = [name for name in parts if sharding.offload_weights and name.startswith("weights, ")]
    if sharding.offload_optimiser:
        offloaded += ["optimiser", "gradients"]
        host = 4 * numbers // optimiser_ranks  # gradients in 32 bits, where the CPU steps
    for name in offloaded:
        host += parts[name]
        parts[name] = 0
    several = ranks > 1
    reserved = int(CONTEXT + COMMUNICATION * several + FRAGMENTATION * step.activations) if setup.on_cuda else 0
    return Memory(parts, step, host, pageable // optimiser_ranks, reserved)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _weights(setup: Setup, planned: PlannedModel, architecture: Architecture) -> dict[str, int]:
    """Bytes on a rank by component."""
    bits, ranks = setup.tuning.bits(), setup.sharding.ranks_of(3, setup.ranks)
    packed = {id(layer.weight) for layer in planned.quantised}
    sizes = Counter[str]()
    for name, parameter in planned.model.named_parameters():
        if id(parameter) in packed:
            size = quantised_bytes(*parameter.shape, bits)
        elif setup.sharding.engine == "FSDP2" and setup.casts_weights and parameter.requires_grad:
            size = 4 * parameter.numel() // ranks
        else:
            size = parameter.numel() * parameter.element_size() // ranks
        component = component_of(own_name(name).partition(".lora_")[0], architecture.backbone)
        sizes[component.replace("_", " ")] += size
    return dict(sizes)


def _gathered(setup: Setup, planned: PlannedModel) -> int:
    """Bytes of whole weights that a rank holds for the layers at work, where weights are cut."""
    sharding = setup.sharding
    if sharding.stage < 3:
        return 0
    parameters = list(planned.model.parameters())
    width = parameters[0].element_size()
    if sharding.engine == "FSDP2":  # a layer, the next one, and what stays: all outside of layers but the embedding
        return width * (2 * _largest_layer(planned) + _outside_of_layers(planned))
    sizes = [parameter.numel() for parameter in parameters]
    live = max(min(sharding.live, sum(sizes)), max(sizes))
    return width * (live + sum(size for size in sizes if size < sharding.persistent))


def _buckets(setup: Setup, planned: PlannedModel, gradients: int) -> int:
    """Bytes of the gradients that are on their way to other ranks."""
    sharding = setup.sharding
    if sharding.engine == "DDP":
        return gradients if setup.ranks > 1 else 0
    width, numbers = 2 if setup.casts_weights else 4, sum(parameter.numel() for parameter in planned.trained())
    if sharding.engine == "FSDP2":  # a layer's gradients whole, and once more as they are sent
        return 2 * width * min(_largest_layer(planned), numbers)
    return width * min(sharding.bucket, numbers) * (1 + sharding.overlaps)


def _outside_of_layers(planned: PlannedModel) -> int:
    """Numbers outside of the repeated layers, without an embedding that is not the head as well."""
    model = planned.model
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    left_out = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        left_out.add(id(model.get_input_embeddings().weight))
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in left_out)


def _largest_layer(planned: PlannedModel) -> int:
    """Numbers of the largest layer of the tower or the language model."""
    return max(
        sum(parameter.numel() for parameter in module.parameters())
        for module in planned.model.modules()
        if isinstance(module, GradientCheckpointingLayer)
    )


def _activations(setup: Setup, step: StepBytes, gradients: int, numbers: int) -> int:
    """Bytes beside everything else at the worst moment of a step."""
    sharding = setup.sharding
    if sharding.stage < 2 and not setup.accumulates:
        activations = max(step.peak, gradients) - gradients  # gradients are not all there when activations are
    else:
        activations = step.activations
    if sharding.offload_optimiser:
        return activations
    stepped_on = numbers // sharding.ranks_of(1, setup.ranks)
    if sharding.engine == "ZeRO" and sharding.stage == 3:
        stepped_on = min(stepped_on, sharding.sub_group)
    # When the optimiser steps: gradients in 32 bits, and the roots that torch's takes of all tensors at once on a GPU.
    width = 4 * (sharding.engine == "ZeRO") + 4 * (setup.optimiser == "adamw_torch" and setup.on_cuda)
    return max(activations, width * stepped_on)
