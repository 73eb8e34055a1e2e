"""Adapters: what PEFT is told, where their weights start, and in which form they are kept."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from safetensors.torch import load_file, save_file
from torch import nn

from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.errors import InputError
from sarlang_sft.trainable import Trainable
from sarlang_sft.tuning import TuningArguments

INITIAL = "initial_adapter"
EVA_ROUNDS = 30


def lora_config(
    model: nn.Module, backbone: Backbone, trainable: Trainable, tuning: TuningArguments
) -> LoraConfig | None:
    """The adapters as PEFT takes them; None if there are none."""
    if not trainable.adapted:
        return None
    names = [name for name, _ in model.named_modules()]
    by_component: dict[str, list[str]] = {}
    for name in trainable.adapted:
        by_component.setdefault(component_of(name, backbone), []).append(name)
    patterns = {component: _as_pattern(of_it, names) for component, of_it in by_component.items()}
    ranks = tuning.ranks()
    own = {component: ranks[component] for component in by_component if ranks[component] != tuning.lora_r}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        init_lora_weights=True if tuning.init_lora_weights == "default" else tuning.init_lora_weights,
        eva_config=EvaConfig(rho=1.0) if tuning.init_lora_weights == "eva" else None,
        target_modules="|".join(patterns.values()),
        modules_to_save=trainable.saved or None,
        rank_pattern={patterns[component]: rank for component, rank in own.items()},
        alpha_pattern={
            patterns[component]: tuning.lora_alpha * (rank / tuning.lora_r) ** (0.5 if tuning.use_rslora else 1)
            for component, rank in own.items()
        },
    )


def _as_pattern(names: list[str], among: list[str]) -> str:
    """A regular expression that fits these module names and no other of the model.

    It is short because layers differ in their number only.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".#.", name), []).append(name)
    parts = []
    for shape, members in sorted(groups.items()):
        part = re.escape(shape).replace(r"\#", r"\d+")
        if {name for name in among if re.fullmatch(part, name)} != set(members):
            numbers = "|".join(re.search(r"\.(\d+)\.", name)[1] for name in members)
            part = re.escape(shape).replace(r"\#", f"({numbers})")
        parts.append(part)
    return "|".join(parts)


def start_from_data(model: PeftModel, batches: list[dict[str, Any]]) -> None:
    """EVA (arXiv 2410.07170): the adapters' A become the principal directions of what their layers see.

    Args:
        batches: Model inputs on the model's device; they are gone through until the directions settle.

    Raises:
        InputError: They do not, as where a layer sees fewer tokens than its rank.
    """
    passes = 0

    def forward(model: PeftModel, inputs: dict[str, Any]) -> Any:
        nonlocal passes
        passes += 1
        if passes > EVA_ROUNDS * len(batches):
            raise InputError(
                f"init_lora_weights eva: the directions do not settle in {EVA_ROUNDS} rounds over {len(batches)} "
                "rows; a layer may see fewer tokens than its rank: lower lora_r, or raise eva_rows"
            )
        return model(**inputs)

    def flat(layer_input: Any, model_input: Any, name: str) -> torch.Tensor:
        tokens = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
        return tokens.reshape(-1, tokens.shape[-1]).float()

    training = model.training
    model.eval()
    initialize_lora_eva_weights(
        model,
        batches,
        forward_fn=forward,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=flat,
        gather_distributed_inputs=False,  # every rank looks at the same rows
        show_progress_bar=False,
    )
    model.train(training)


def keep_initial(model: PeftModel, out: Path) -> None:
    """PiSSA: keep where the adapters start, which [`save_as_lora`] subtracts again."""
    model.peft_config["default"].init_lora_weights = True  # so that reading it back changes no weights
    model.save_pretrained(out / INITIAL)
    model.peft_config["default"].init_lora_weights = "pissa"


def save_as_lora(model: PeftModel, out: Path, initial: Path) -> None:
    """PiSSA (arXiv 2404.02948): turn the saved adapter into a LoRA of twice the rank that fits the untouched base.

    In training the base's weights lack what the adapters start from.

    Args:
        out: Folder of the saved adapter.
        initial: What [`keep_initial`] wrote; removed.
    """
    weights = out / "adapter_model.safetensors"
    in_full = {name: tensor for name, tensor in load_file(weights).items() if ".lora_" not in name}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PiSSA changes the base weights")  # which this mends
        model.save_pretrained(out, path_initial_model_for_weight_conversion=str(initial))
    save_file({**load_file(weights), **in_full}, weights, {"format": "pt"})  # PEFT converts adapters alone
    shutil.rmtree(initial)
