"""What data-parallel ranks send each other in a step of the optimiser, by formula, and what that makes of many GPUs.

The formula follows what DeepSpeed 0.19 and PyTorch's DDP do (benchmarks/scaling.py counts it), not the ZeRO paper
(Rajbhandari et al., arXiv 1910.02054), where they differ: ZeRO-1 and -2 reduce gradients by an all-reduce and gather
the new weights besides, 3 times the trained size instead of the paper's 2.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.trainable import own_name, whole_shape
from sarlang_sft.tuning import COMPONENTS

# Collective: how often each byte of the whole message crosses the ring. With it, (N - 1) / N times the message leaves
# every one of N ranks: an all-reduce is a reduce-scatter and an all-gather (Patarasuk and Yuan, 2009).
ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "reduce": 1}

# Collective, what of [`Sizes`] it moves, whether in every pass (or once a step), whether in the weights' type.
SCHEDULES = {
    "ddp": (("all_reduce", "trainable", False, False),),
    "zero1": (("all_reduce", "trainable", False, False), ("all_gather", "trainable", False, True)),
    "zero2": (("all_reduce", "trainable", True, False), ("all_gather", "trainable", False, True)),
    "zero3": (("all_gather", "gathered", True, True), ("reduce_scatter", "trainable", True, False)),
    "fsdp2": (("all_gather", "unsharded", True, True), ("reduce_scatter", "trainable", False, False)),
}


@dataclass(frozen=True)
class Sizes:
    """How many numbers the parameters of a model hold.

    Attributes:
        parameters: All of them, adapters included.
        trainable: Those that train.
        passed: Those that gradients pass, and which the backward pass therefore needs.
        layers: Those of them in the repeated layers of tower and language model.
        recomputed: Those of them that ZeRO-3 gathers once more where checkpointing computes activations anew.
    """

    parameters: int
    trainable: int
    passed: int
    layers: int
    recomputed: int

    @property
    def gathered(self) -> int:
        """What ZeRO-3 gathers for one forward and backward pass."""
        return self.parameters + self.passed + self.recomputed

    @property
    def unsharded(self) -> int:
        """What FSDP2 gathers for one: what is outside of layers stays, and layers are computed anew as they are."""
        return self.parameters + self.layers


def count_sizes(model: nn.Module, backbone: Backbone, checkpointed: bool) -> Sizes:
    """Count the parameters of a model that is ready to train; it may be on the meta device, or cut by ZeRO-3.

    Args:
        checkpointed: Activations are computed anew in every component that gradients pass.
    """
    sizes = {name: math.prod(whole_shape(parameter)) for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    places = {name: COMPONENTS.index(component_of(own_name(name), backbone)) for name in sizes}
    first = min(places[name] for name in trainable)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    passed = {
        name
        for name, place in places.items()
        if place >= first and (name in trainable or tied or "embed_tokens" not in name)
    }
    layers: set[str] = set()
    last: set[str] = set()  # of each layer: where its backward pass begins, so that it is there when computing anew
    for name, layer in model.named_modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layers |= {f"{name}.{own}" for own, _ in layer.named_parameters()} & passed
            *_, (inner, linear) = ((n, module) for n, module in layer.named_modules() if isinstance(module, nn.Linear))
            last |= {f"{name}.{inner}.{own}" for own, _ in linear.named_parameters()}

    def total(names: set[str]) -> int:
        return sum(sizes[name] for name in names)

    recomputed = layers - last if checkpointed else set()
    return Sizes(total(set(sizes)), total(trainable), total(passed), total(layers), total(recomputed))


class Exchange(NamedTuple):
    """A collective over all ranks: `elements` numbers, of `width` bytes each, are reduced or gathered in all."""

    kind: str
    elements: int
    width: int

    def sent(self, ranks: int) -> float:
        """Bytes that leave a rank, on average over a ring."""
        return ROUNDS[self.kind] * (ranks - 1) / ranks * self.elements * self.width


def exchanges(sharding: str, sizes: Sizes, passes: int, weight_width: int, gradient_width: int) -> list[Exchange]:
    """What the ranks exchange in a step; flags, norms and the count of items are left out: a few numbers each.

    Args:
        sharding: A key of [`SCHEDULES`].
        passes: Forward and backward passes in a step (gradient accumulation).
        weight_width: Bytes per number of the weights that are gathered.
        gradient_width: Of the gradients that are reduced.
    """
    amounts = {"trainable": sizes.trainable, "gathered": sizes.gathered, "unsharded": sizes.unsharded}
    return [
        Exchange(kind, amounts[which] * (passes if per_pass else 1), weight_width if of_weights else gradient_width)
        for kind, which, per_pass, of_weights in SCHEDULES[sharding]
    ]


@dataclass(frozen=True)
class Cluster:
    """Nodes of several GPUs; bytes a second in one direction.

    Attributes:
        inside: What a GPU sends to the others of its node.
        between: What a node sends to other nodes, through all its network cards.
    """

    name: str
    gpus_per_node: int
    inside: float
    between: float

    def bandwidth(self, gpus: int) -> float:
        """Of a ring through all GPUs, node by node: every link carries the same, also the one that leaves a node."""
        return self.inside if gpus <= self.gpus_per_node else min(self.inside, self.between)


class Projection(NamedTuple):
    """Seconds of a step on every GPU.

    Attributes:
        compute: Of its own work.
        communication: Of what the ring carries.
    """

    compute: float
    communication: float

    @property
    def one_after_the_other(self) -> float:
        """Part of the step that computes, if nothing is sent while it does."""
        return self.compute / (self.compute + self.communication)

    @property
    def overlapped(self) -> float:
        """The same, if everything is sent while it computes."""
        return self.compute / max(self.compute, self.communication)


def project(step: list[Exchange], flop: float, speed: float, cluster: Cluster, gpus: int) -> Projection:
    """The step on `gpus` GPUs, each with the same work.

    Args:
        flop: Operations of a GPU in a step.
        speed: Operations a second that a GPU reaches alone.
    """
    return Projection(flop / speed, sum(one.sent(gpus) for one in step) / cluster.bandwidth(gpus))
