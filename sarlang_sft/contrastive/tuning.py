"""What of a contrastive model trains: everything, low-rank adapters, or all but a locked image tower."""

import re
from dataclasses import dataclass, field

from open_clip.modified_resnet import ModifiedResNet
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.open_attention import close_attention, open_attention
from sarlang_sft.errors import InputError

TUNINGS = ("full", "lora", "locked_image")
BLOCKS = re.compile(r"\b(resblocks|cross_attn)\.\d+\.(attn|mlp)\.")


@dataclass
class PairTuning:
    """How the towers are tuned."""

    tuning: str = field(
        default="full",
        metadata={
            "help": "full; lora: adapters in both towers, merged into the result; locked_image: the image tower stays "
            "as it is (LiT, arXiv 2111.07991), but for its last unlocked_groups."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32, metadata={"help": "Scale of the adapters: alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    unlocked_groups: int = field(
        default=0, metadata={"help": "Last groups of layers of a locked image tower that train all the same."}
    )

    def __post_init__(self) -> None:
        if self.tuning not in TUNINGS:
            raise InputError(f"tuning `{self.tuning}`: choose one of {', '.join(TUNINGS)}")
        if self.lora_r < 1 or not self.lora_alpha > 0 or not 0 <= self.lora_dropout < 1:
            raise InputError("lora_r must be 1 or more, lora_alpha above 0, lora_dropout at least 0 and below 1")
        if self.unlocked_groups < 0 or (self.unlocked_groups and self.tuning != "locked_image"):
            raise InputError(f"unlocked_groups {self.unlocked_groups}: is for tuning locked_image, and not below 0")


def tune(contrastive: ContrastiveModel, tuning: PairTuning) -> PeftModel | None:
    """Freeze what does not train; with adapters, what [`merge`] needs. The temperature always trains.

    Raises:
        InputError: The image tower cannot be unlocked in part.
    """
    model = contrastive.model
    model.requires_grad_(True)
    if tuning.tuning == "locked_image":
        if tuning.unlocked_groups and isinstance(model.visual, ModifiedResNet):
            raise InputError(f"unlocked_groups {tuning.unlocked_groups}: a ResNet is locked as a whole; leave it out")
        model.visual.lock(unlocked_groups=tuning.unlocked_groups)
    if tuning.tuning != "lora":
        return None
    open_attention(model)
    layers = adaptable_layers(model)
    for tower, found in (("image", [name for name in layers if name.startswith("visual.")]),
                         ("text", [name for name in layers if not name.startswith("visual.")])):  # fmt: skip
        if not found:
            raise InputError(
                f"tuning lora: the {tower} tower of this model has no layers for adapters; tune it in full"
            )
    config = LoraConfig(
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=layers,
    )
    adapters = get_peft_model(model, config)  # puts the adapters into the model itself
    model.logit_scale.requires_grad_(True)
    return adapters


def merge(contrastive: ContrastiveModel, adapters: PeftModel) -> None:
    """Make the adapters part of the weights."""
    adapters.merge_and_unload()
    close_attention(contrastive.model)


def adaptable_layers(model: nn.Module) -> list[str]:
    """Names of the layers that get an adapter: attention and MLPs of transformers, convolutions of a ResNet's stages.

    Left out are poolers, whose weights are not used through the layers that hold them, and embeddings.
    """
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and BLOCKS.search(name))
        or (isinstance(module, nn.Conv2d) and name.startswith("visual.layer"))
    ]


def count_parameters(model: nn.Module) -> str:
    """What trains, tower by tower, in one line."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        part = {"visual": "image tower", "text_decoder": "decoder", "logit_scale": "temperature"}.get(
            part, "text tower"
        )
        trained, held = counts.setdefault(part, [0, 0])
        counts[part] = [trained + parameter.numel() * parameter.requires_grad, held + parameter.numel()]
    return "trains: " + ", ".join(f"{part} {trained:,} of {held:,}" for part, (trained, held) in counts.items())
