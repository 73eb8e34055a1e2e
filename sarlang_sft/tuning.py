"""What trains and what does not: component modes, LoRA targets, and the table that proves them."""

import math
import re
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from torch import nn

from sarlang_sft.backbones import Backbone, component_of, linear_modules
from sarlang_sft.errors import InputError

COMPONENTS = ("vision_tower", "projector", "language_model")
MODES = ("frozen", "lora", "full")


@dataclass
class TuningArguments:
    """How each component is tuned."""

    vision_tower: str = field(default="frozen", metadata={"help": "frozen, lora or full"})
    projector: str = field(default="frozen", metadata={"help": "frozen, lora or full"})
    language_model: str = field(default="lora", metadata={"help": "frozen, lora or full"})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters: alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    use_rslora: bool = field(default=False, metadata={"help": "Rank-stabilised scale: alpha / sqrt(r)."})
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed adapters (DoRA)."})

    def __post_init__(self) -> None:
        modes = self.modes()
        for component, mode in modes.items():
            if mode not in MODES:
                raise InputError(f"{component}: `{mode}` is no mode; choose one of {', '.join(MODES)}")
        if set(modes.values()) == {"frozen"}:
            raise InputError(
                "every component is frozen: set vision_tower, projector or language_model to lora or full"
            )
        if {"lora", "full"} <= set(modes.values()):
            raise InputError(
                "lora and full components cannot be mixed in one run; set all tuned components to one of them"
            )
        if self.lora_r < 1:
            raise InputError(f"lora_r {self.lora_r}: must be at least 1")
        if self.lora_alpha <= 0:
            raise InputError(f"lora_alpha {self.lora_alpha}: must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout {self.lora_dropout}: must be at least 0 and below 1")

    def modes(self) -> dict[str, str]:
        """Mode by component."""
        return {
            "vision_tower": self.vision_tower,
            "projector": self.projector,
            "language_model": self.language_model,
        }


@dataclass(frozen=True)
class ComponentCount:
    """Parameter counts of one component; `adapter` counts added ones, `trainable` whatever gets a gradient."""

    component: str
    base: int
    adapter: int
    trainable: int

    @property
    def state(self) -> str:
        """`frozen`, `adapted`, `fully trained` or `partly trained`."""
        if self.trainable == 0:
            return "frozen"
        if self.adapter:
            return "adapted" if self.trainable == self.adapter else "partly trained"
        return "fully trained" if self.trainable == self.base else "partly trained"


def lora_config(model: nn.Module, backbone: Backbone, tuning: TuningArguments) -> LoraConfig | None:
    """LoRA on every linear layer of the components whose mode is `lora`; None if there is none."""
    targets = [
        name
        for component, mode in tuning.modes().items()
        if mode == "lora"
        for name in linear_modules(model, backbone, component)
    ]
    if not targets:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        target_modules=_as_pattern(targets),
    )


def _as_pattern(names: list[str]) -> str:
    """A regular expression for these module names, short because layers differ in their number only."""
    shapes = sorted({re.sub(r"\.\d+\.", ".#.", name) for name in names})
    return "|".join(re.escape(shape).replace(r"\#", r"\d+") for shape in shapes)


def freeze_components(model: nn.Module, backbone: Backbone, tuning: TuningArguments) -> None:
    """Let gradients into the parameters of the `full` components only."""
    modes = tuning.modes()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(modes[component_of(name, backbone)] == "full")


def run_frozen_without_gradient(model: nn.Module, backbone: Backbone) -> None:
    """Keep a frozen vision tower out of the graph; does nothing if any part of the tower trains.

    Gradient checkpointing makes transformers let gradients into every embedding, the patches of a frozen tower
    included, which would then be kept and walked backwards for nothing.
    """
    prefixes = backbone.components["vision_tower"]
    tower = {
        name: module
        for name, module in model.named_modules()
        if own_name(name).startswith(prefixes) and component_of(own_name(name), backbone) == "vision_tower"
    }
    if any(parameter.requires_grad for module in tower.values() for parameter in module.parameters(recurse=False)):
        return
    done: list[str] = []
    for name, module in tower.items():
        # A tower with its projector inside is not frozen as a whole if the projector trains: then its blocks are.
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        inside = any(name.startswith(f"{outer}.") for outer in done)
        if frozen and not inside and not isinstance(module, nn.ModuleList):
            done.append(name)
            _run_without_gradient(module)


def _run_without_gradient(module: nn.Module) -> None:
    before: list[bool] = []

    def switch_off(module: nn.Module, inputs: tuple) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def restore(module: nn.Module, inputs: tuple, output: object) -> None:
        torch.set_grad_enabled(before.pop())

    module.register_forward_pre_hook(switch_off)
    module.register_forward_hook(restore, always_call=True)


def own_name(name: str) -> str:
    """The backbone's name of a parameter that PEFT wrapped."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Its shape; a parameter partitioned by ZeRO-3 is empty on this rank and keeps its true shape in ds_shape."""
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape


def count_components(model: nn.Module, backbone: Backbone) -> list[ComponentCount]:
    """Count parameters per component, of a plain or a PEFT model, whole or partitioned by ZeRO-3."""
    counts = {component: [0, 0, 0] for component in COMPONENTS}
    for name, parameter in model.named_parameters():
        count = counts[component_of(own_name(name), backbone)]
        size = math.prod(whole_shape(parameter))
        count["lora_" in name] += size
        count[2] += size * parameter.requires_grad
    return [ComponentCount(component, *count) for component, count in counts.items()]


def component_table(counts: list[ComponentCount]) -> str:
    """The counts as a table for the screen."""
    lines = [f"{'component':15} {'state':14} {'parameters':>15} {'adapter':>13} {'trainable':>15}"]
    lines += [
        f"{count.component:15} {count.state:14} {count.base:15,} {count.adapter:13,} {count.trainable:15,}"
        for count in counts
    ]
    total = sum(count.base + count.adapter for count in counts)
    trainable = sum(count.trainable for count in counts)
    return "\n".join([*lines, f"trainable: {trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"])


def check_components(counts: list[ComponentCount], tuning: TuningArguments) -> None:
    """Raise `RuntimeError` unless what trains is what the configuration says."""
    expected = {"frozen": "frozen", "lora": "adapted", "full": "fully trained"}
    for count in counts:
        mode = tuning.modes()[count.component]
        if count.state != expected[mode]:
            raise RuntimeError(f"{count.component} is {count.state}, but its mode is `{mode}`")
