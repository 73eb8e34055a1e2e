"""What a run trains, chosen by inspection of the model before its weights are loaded, and proved afterwards."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from bitsandbytes.nn import Params4bit
from torch import nn
from transformers import PreTrainedModel

from sarlang_sft.backbones import Backbone, component_of, linear_modules
from sarlang_sft.errors import InputError
from sarlang_sft.tuning import COMPONENTS, TuningArguments


@dataclass(frozen=True)
class Trainable:
    """What trains, by names of the backbone's own modules and parameters.

    Attributes:
        adapted: Linear layers with an adapter.
        saved: Modules whose copies train in full beside adapters and are saved with them.
        full: Parameters that train in full.
        idle: Parameters of tuned components that the model never runs; they stay frozen.
        quantised: Linear layers loaded in 4 or 8 bits.
    """

    adapted: list[str]
    saved: list[str]
    full: set[str]
    idle: set[str]
    quantised: list[str]


def choose_trainable(skeleton: PreTrainedModel, backbone: Backbone, tuning: TuningArguments) -> Trainable:
    """What the configuration means for this model.

    Args:
        skeleton: The model without weights, see `build_skeleton`.

    Raises:
        InputError: The configuration names modules that the model does not have, or that lie in a frozen component.
    """
    modes = tuning.modes()
    unused = backbone.unused(skeleton.config)
    tuned = [component for component in COMPONENTS if modes[component] == "full"]
    parameters = {name: component_of(name, backbone) for name, _ in skeleton.named_parameters()}
    idle = {name for name, part in parameters.items() if modes[part] != "frozen" and _within(name, unused)}
    full = {name for name, component in parameters.items() if component in tuned} - idle
    adapted = _adapted(skeleton, backbone, tuning, unused)
    saved: list[str] = []
    if tuning.adapts():
        saved = _covering_modules(skeleton, full)
        named = _named_modules(skeleton, backbone, tuning, adapted, unused)
        saved += named
        full |= {name for name in parameters if _within(name, named)}
    quantised = linear_modules(skeleton, backbone, "language_model") if tuning.bits() else []
    return Trainable(adapted, saved, full, idle, quantised)


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _adapted(
    skeleton: PreTrainedModel, backbone: Backbone, tuning: TuningArguments, unused: tuple[str, ...]
) -> list[str]:
    modes = tuning.modes()
    layers = {component: linear_modules(skeleton, backbone, component) for component in COMPONENTS}
    targets = {
        component: [name for name in layers[component] if not _within(name, unused)]
        for component in COMPONENTS
        if modes[component] == "lora"
    }
    if tuning.lora_target_modules is None:
        return [name for names in targets.values() for name in names]
    option = f"lora_target_modules `{tuning.lora_target_modules}`"
    try:
        wanted = re.compile(tuning.lora_target_modules)
    except re.error as error:
        raise InputError(f"{option}: is no regular expression: {error}") from error
    candidates = {**layers, **targets}
    matched = {part: [name for name in names if wanted.fullmatch(name)] for part, names in candidates.items()}
    if not any(matched.values()):
        example = next(iter(targets.values()))[0]
        raise InputError(f"{option}: matches no linear layer that is run and may be adapted; one is {example}")
    for component, names in matched.items():
        if names and modes[component] != "lora":
            raise InputError(
                f"{option}: matches {len(names)} layers of the {component} (such as {names[0]}), whose mode is "
                f"{modes[component]}; set `{component}: lora`, or begin the expression with "
                f"`{'|'.join(map(re.escape, backbone.components['language_model'][:1]))}`"
            )
        if not names and modes[component] == "lora":
            raise InputError(
                f"{option}: matches no layer of the {component}, whose mode is lora; set `{component}: frozen`, or "
                f"widen the expression (its layers are named like {targets[component][0]})"
            )
    return [name for component in targets for name in matched[component]]


def _covering_modules(skeleton: PreTrainedModel, parameters: set[str]) -> list[str]:
    """The largest modules that hold nothing but these parameters, and together all of them; never a list."""
    covering: list[str] = []
    for name, module in skeleton.named_modules():
        own = {f"{name}.{own_name}" for own_name, _ in module.named_parameters()}
        whole = own and own <= parameters and not isinstance(module, nn.ModuleList)
        if whole and not _within(name, covering):
            covering.append(name)
    return covering


def _named_modules(
    skeleton: PreTrainedModel,
    backbone: Backbone,
    tuning: TuningArguments,
    adapted: list[str],
    unused: tuple[str, ...],
) -> list[str]:
    """The modules of the option `modules_to_save`."""
    tied = {key.removesuffix(".weight") for pair in skeleton.all_tied_weights_keys.items() for key in pair}
    found: list[str] = []
    for wanted in tuning.modules_to_save:
        option = f"modules_to_save `{wanted}`"
        names = [name for name, _ in skeleton.named_modules() if name == wanted or name.endswith(f".{wanted}")]
        if not names:
            raise InputError(f"{option}: the model has no module of this name")
        for name in names:
            parts = {component_of(own, backbone) for own, _ in skeleton.named_parameters() if _within(own, [name])}
            if any(_within(layer, [name]) for layer in adapted) or not parts:
                raise InputError(f"{option}: {name} holds adapters or no weights; name a module without adapters")
            [component] = parts  # a module of several components holds adapters
            mode = tuning.modes()[component]
            if mode != "lora":
                raise InputError(f"{option}: {name} lies in the {component}, whose mode is {mode}")
            if _within(name, unused):
                raise InputError(f"{option}: the model never runs {name}, so that it would not train; leave it out")
            if name in tied:
                raise InputError(
                    f"{option}: this model's embedding and head are one weight, which an adapter cannot keep tied; "
                    "leave it out, or train the language model in full"
                )
        found += names
    return found


def freeze_all_but(model: nn.Module, trainable: Trainable) -> None:
    """Let gradients into the parameters that train in full, and into no other."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable.full)


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
    """The backbone's name of a module or parameter that PEFT wrapped."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default", "").replace(".original_module", "")


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Its shape: one partitioned by ZeRO-3 is empty on this rank, one of 4 bits is packed into bytes."""
    if isinstance(parameter, Params4bit) and parameter.quant_state is not None:
        return parameter.quant_state.shape
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape


@dataclass(frozen=True)
class ComponentCount:
    """Parameters of one component: of the base, of the adapters added, and how many of the base's train."""

    component: str
    base: int
    adapter: int
    full: int
    idle: int

    @property
    def state(self) -> str:
        """`frozen`, `adapted`, `fully trained`, or a mixture of them."""
        if self.full and self.full + self.idle < self.base:
            return "adapted, partly trained" if self.adapter else "partly trained"
        return "adapted" if self.adapter else "fully trained" if self.full else "frozen"


def count_components(model: nn.Module, backbone: Backbone, trainable: Trainable) -> list[ComponentCount]:
    """Count parameters per component, of a plain or a PEFT model, whole, quantised or partitioned by ZeRO-3."""
    counts: dict[str, Counter[str]] = {component: Counter() for component in COMPONENTS}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # its copy trains and counts
            continue
        own = own_name(name)
        count, size = counts[component_of(own, backbone)], math.prod(whole_shape(parameter))
        if ".lora_" in name:
            count["adapter"] += size
            continue
        count["base"] += size
        count["full"] += size * parameter.requires_grad
        count["idle"] += size * (own in trainable.idle)
    kinds = ("base", "adapter", "full", "idle")
    return [ComponentCount(component, *(count[kind] for kind in kinds)) for component, count in counts.items()]


def component_table(counts: list[ComponentCount], trainable: Trainable, tuning: TuningArguments) -> str:
    """The counts as a table for the screen."""
    lines = [f"{'component':15} {'state':23} {'parameters':>15} {'adapter':>13} {'trainable':>15}"]
    lines += [
        f"{count.component:15} {count.state:23} {count.base:15,} {count.adapter:13,} {count.adapter + count.full:15,}"
        for count in counts
    ]
    total = sum(count.base + count.adapter for count in counts)
    training = sum(count.adapter + count.full for count in counts)
    lines.append(f"trainable: {training:,} of {total:,} ({100 * training / total:.2f} %)")
    lines += [
        f"{count.component}: {count.idle:,} parameters behind the image features are never run and stay as they are"
        for count in counts
        if count.idle
    ]
    if trainable.quantised:
        kind = "8-bit integers" if tuning.load_in_8bit else "NF4, doubly quantised"
        lines.append(f"language_model: {len(trainable.quantised)} linear layers in {kind}; everything else as it is")
    return "\n".join(lines)


def check_trainable(model: nn.Module, trainable: Trainable) -> None:
    """Raise `RuntimeError` unless exactly what was chosen lets gradients in, and is quantised."""
    adapted: set[str] = set()
    full: set[str] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own, adapter, _ = own_name(name).partition(".lora_")
            (adapted if adapter else full).add(own)
    quantised = {
        own_name(name).removesuffix(".base_layer")
        for name, module in model.named_modules()
        if type(module).__module__.startswith("bitsandbytes")
    }
    for what, found, chosen in (
        ("adapted layers", adapted, set(trainable.adapted)),
        ("parameters trained in full", full, trainable.full),
        ("quantised layers", quantised, set(trainable.quantised)),
    ):
        if found != chosen:
            more, less = found - chosen, chosen - found
            raise RuntimeError(
                f"{what}: {len(more)} that the configuration does not name (such as {min(more, default='none')}), "
                f"{len(less)} of those it names are missing (such as {min(less, default='none')})"
            )
