"""Several adapters with weights made into one, by PEFT, without the base's weights."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from sarlang_sft.adapter_updates import WEIGHTS, read_config
from sarlang_sft.errors import InputError
from sarlang_sft.trainable import own_name

# How several adapters become one, and what PEFT calls it: its own `linear` adds A and B apart, with cross terms.
WAYS = {"linear": "cat", "ties": "ties", "dare_linear": "dare_linear", "dare_ties": "dare_ties"}
DENSITY = 0.5
SEED = 0  # of the values that DARE drops


@dataclass(frozen=True)
class Blend:
    """Adapters of one base and how they are combined.

    `linear` is exactly the weighted sum of their updates. The others thin out A and B apart, as PEFT does: TIES (arXiv
    2306.01708) keeps the largest values and those of the prevailing sign, DARE (arXiv 2311.03099) random ones.

    Attributes:
        density: The part of the values that the others keep.
    """

    adapters: list[str]
    weights: list[float]
    combine: str = "linear"
    density: float | None = None

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.adapters):
            raise InputError(
                f"--weights: {len(self.weights)} for {len(self.adapters)} adapters; give one for each, as in "
                "--adapter A B --weights 0.5 0.5"
            )
        if not all(math.isfinite(weight) and weight for weight in self.weights):
            raise InputError("--weights: must be numbers other than 0; leave out an adapter that shall not count")
        if self.combine not in WAYS:
            raise InputError(f"--combine {self.combine}: choose one of {', '.join(WAYS)}")
        if self.combine != "linear" and len(self.adapters) == 1:
            raise InputError(f"--combine {self.combine}: needs several adapters")
        if self.combine == "linear" and self.density is not None:
            raise InputError("--density: linear keeps every value; leave it out, or choose another --combine")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"--density {self.density}: must be above 0 and at most 1")

    def kept(self) -> float | None:
        """The density in use; None where every value is kept."""
        return None if self.combine == "linear" else DENSITY if self.density is None else self.density


def check_plain(adapter: str) -> None:
    """Raise [`InputError`] if an adapter cannot be one of several."""
    config = read_config(Path(adapter), f"--adapter {adapter}")
    reason = "DoRA's rows have one length each, which cannot be added" if config.use_dora else ""
    if config.modules_to_save:
        reason = f"holds modules trained in full ({', '.join(config.modules_to_save)}), which are no update to add"
    if config.bias != "none":
        reason = "holds trained biases, which are no update to add"
    if reason:
        raise InputError(f"--adapter {adapter}: {reason}; merge it alone")


def combine_adapters(blend: Blend, skeleton: PreTrainedModel, out: Path) -> None:
    """Write one adapter that stands for all of them into a folder, in float32.

    Args:
        skeleton: The base without weights, which every adapter fits; it is changed.

    Raises:
        InputError: PEFT cannot combine them so, as where ranks differ.
    """
    names = [f"adapter_{number}" for number in range(len(blend.adapters))]
    _give_stand_ins(skeleton)
    tuned = PeftModel.from_pretrained(skeleton, blend.adapters[0], names[0], torch_device="cpu")
    for adapter, name in zip(blend.adapters[1:], names[1:], strict=True):
        tuned.load_adapter(adapter, name, torch_device="cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            tuned.base_model.add_weighted_adapter(
                names, blend.weights, "combined", WAYS[blend.combine], density=blend.kept()
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"--combine {blend.combine}: PEFT cannot combine these adapters so: {error}") from error
    tensors = get_peft_model_state_dict(tuned, adapter_name="combined")
    ranks = {
        own_name(name).removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    # Weights and scales are in A and B: alpha is the rank everywhere. PEFT would keep the first adapter's rsLoRA.
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=sorted(ranks), rank_pattern=others,
        alpha_pattern=others, inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(out))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / WEIGHTS, {"format": "pt"})


def _give_stand_ins(skeleton: PreTrainedModel) -> None:
    """Let PEFT find a device and dtype at each linear layer: one zero that stands for all of its weight."""
    for module in skeleton.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.zeros(1).expand(module.weight.shape), requires_grad=False)
