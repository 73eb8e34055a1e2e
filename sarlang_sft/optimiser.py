"""Parameter groups: a learning rate for every component, and for the adapters' two sides."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.trainable import own_name
from sarlang_sft.tuning import TuningArguments


def parameter_groups(
    model: nn.Module,
    backbone: Backbone,
    tuning: TuningArguments,
    learning_rate: float,
    weight_decay: float,
    decaying: Iterable[str],
) -> list[dict[str, Any]]:
    """Groups for the optimiser, of what trains; the first one has the plain learning rate if any has it.

    The B of an adapter takes `loraplus_lr_ratio` times its component's rate (LoRA+, arXiv 2402.12354).

    Args:
        decaying: Names of the parameters that weight decay applies to.
    """
    rates = tuning.rates(learning_rate)
    decaying = set(decaying)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = rates[component_of(own_name(name), backbone)]
            if ".lora_B." in name:
                rate *= tuning.loraplus_lr_ratio
            groups.setdefault((rate, name in decaying), []).append(parameter)
    ordered = sorted(groups, key=lambda key: (key[0] != learning_rate, key))
    return [
        {"params": groups[rate, decays], "lr": rate, "weight_decay": weight_decay * decays} for rate, decays in ordered
    ]
