"""What of a contrastive model trains: everything, low-rank adapters, or all but a locked image tower."""

from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.errors import InputError

TUNINGS = ("full", "lora", "locked_image")


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
    """Freeze what does not train; with adapters, what [`merge`] needs. The temperature always trains."""
    model = contrastive.model
    model.requires_grad_(True)
    adapters = None
    if tuning.tuning == "locked_image":
        model.visual.lock(unlocked_groups=tuning.unlocked_groups, freeze_bn_stats=True)
    if tuning.tuning == "lora":
        config = LoraConfig(
            r=tuning.lora_r,
            lora_alpha=tuning.lora_alpha,
            lora_dropout=tuning.lora_dropout,
            target_modules=adaptable_layers(model),
        )
        adapters = get_peft_model(model, config)  # puts the adapters into the model itself
        model.logit_scale.requires_grad_(True)
    return adapters


def adaptable_layers(model: nn.Module) -> list[str]:
    """Names of the layers that get an adapter: attention and MLPs of transformers, convolutions of a ResNet's stages.

    Left out are poolers, whose weights are not used through the layers that hold them, and embeddings.
    """
    blocks = {
        name: isinstance(module, nn.MultiheadAttention | nn.Linear) and not name.endswith("attn.out_proj")
        for name, module in model.named_modules()
        if ".resblocks." in f".{name}" or ".cross_attn." in name
    }
    stages = {
        name: isinstance(module, nn.Conv2d)
        for name, module in model.named_modules()
        if name.startswith("visual.layer")
    }
    return [name for name, adaptable in {**blocks, **stages}.items() if adaptable]


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
