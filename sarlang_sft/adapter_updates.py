"""What an adapter does to each tensor of its base, found by PEFT on a model without weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from sarlang_sft.errors import InputError
from sarlang_sft.safetensors_stream import FLOATS, Stored, read_header, read_rows, read_tensor, row_blocks
from sarlang_sft.trainable import own_name

WEIGHTS = "adapter_model.safetensors"
# Starts that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ ...) move a part of them.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """W + scale * B @ A; with a magnitude m, each row of that scaled to the length m (DoRA, arXiv 2402.09353).

    Attributes:
        a: (r, in).
        b: (out, r).
        magnitude: (out,).
    """

    a: Stored
    b: Stored
    magnitude: Stored | None
    scale: float


@dataclass(frozen=True)
class Replaced:
    """A tensor that was trained in full and takes the place of the base's."""

    by: Stored


Update = LowRank | Replaced


class Rows:
    """Updates rows of one tensor; holds the update's small factors in float32."""

    def __init__(self, update: Update) -> None:
        self.update = update
        if isinstance(update, LowRank):
            self.a, self.b = read_tensor(update.a), read_tensor(update.b)
            self.magnitude = read_tensor(update.magnitude).flatten() if update.magnitude else None

    def apply(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        """The new rows.

        Args:
            weight: (n, in) float32 rows of the base from row `first` on; overwritten.
        """
        rows = slice(first, first + len(weight))
        if isinstance(self.update, Replaced):
            with open(self.update.by.path, "rb") as file:
                return read_rows(file.fileno(), self.update.by, first, len(weight)).float()
        weight.addmm_(self.b[rows], self.a, alpha=self.update.scale)
        if self.magnitude is not None:
            weight *= (self.magnitude[rows] / torch.linalg.vector_norm(weight, dim=1))[:, None]
        return weight


def read_updates(adapter: Path, said: str, skeleton: PreTrainedModel, places: dict[str, str]) -> dict[str, Update]:
    """Updates by the base's own names of its tensors.

    Args:
        said: How messages name the adapter.
        skeleton: The base without weights; PEFT puts its layers into it.
        places: The base's names of tensors by their names in the model.

    Raises:
        InputError: There is no adapter, it is of a kind that cannot be merged, or a tensor of it is missing, has no
            place in the model or another shape.
    """
    stored = _stored(adapter, said)
    tied = {name for pair in skeleton.all_tied_weights_keys.items() for name in pair}
    peft_model = _with_empty_adapter(adapter, said, skeleton, stored)
    updates: dict[str, Update] = {}
    for name, update in _by_tensor(peft_model, stored, said):
        if name in tied:
            raise InputError(
                f"{said}: changes {name}, which this model ties to another ({', '.join(sorted(tied - {name}))}): "
                "merged, it would change both, which the adapter does not. Train without that layer, or in full"
            )
        if name not in places:
            raise InputError(f"{said}: does not fit the model: {name} is no tensor of it")
        updates[places[name]] = update
    return updates


def _stored(adapter: Path, said: str) -> dict[str, Stored]:
    path = adapter / WEIGHTS
    if not path.is_file():
        raise InputError(f"{said}: no adapter there ({WEIGHTS} is missing)")
    try:
        with safe_open(path, "pt"):  # refuses a file that is not whole
            stored, _ = read_header(path)
    except SafetensorError as error:
        raise InputError(f"{said}: {WEIGHTS} is no whole safetensors file: {error}") from error
    # Where the head or the embedding is adapted, PEFT saves a copy of the base's weight too.
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(".base_layer.weight")}
    if wrong := [name for name, tensor in stored.items() if tensor.kind not in FLOATS]:
        raise InputError(f"{said}: {wrong[0]} is of the type {stored[wrong[0]].kind}, which no adapter is kept in")
    return stored


def read_config(adapter: Path, said: str) -> LoraConfig:
    """The adapter's configuration; raises [`InputError`] if it is no LoRA on the base's own weights."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{said}: adapter_config.json cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"{said}: is a {config.peft_type}; LoRA, rsLoRA and DoRA can be merged")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise InputError(
            f"{said}: began with init_lora_weights {config.init_lora_weights}, which moves a part of the base's "
            "weights into the adapter; convert it first (PEFT: path_initial_model_for_weight_conversion)"
        )
    if config.layer_replication:
        raise InputError(f"{said}: repeats layers of the base (layer_replication), which no merge of tensors can")
    return config


def _with_empty_adapter(adapter: Path, said: str, skeleton: PreTrainedModel, stored: dict[str, Stored]) -> PeftModel:
    try:
        model = PeftModel(skeleton, read_config(adapter, said), low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{said}: does not fit the model: {error}") from error
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tensor.shape for name, tensor in state.items()}
    strange, missing = stored.keys() - wanted.keys(), wanted.keys() - stored.keys()
    if strange or missing:
        raise InputError(
            f"{said}: does not fit the model: {len(strange)} of its tensors have no place, {len(missing)} are "
            f"missing (such as {min(strange or missing)}); it may belong to another base"
        )
    if wrong := [name for name in wanted if stored[name].shape != wanted[name]]:
        raise InputError(
            f"{said}: does not fit the model: {len(wrong)} of its tensors have another shape (such as {wrong[0]}: "
            f"{list(stored[wrong[0]].shape)}, needed {list(wanted[wrong[0]])}); it belongs to another base"
        )
    return model


def _by_tensor(model: PeftModel, stored: dict[str, Stored], said: str) -> Iterator[tuple[str, Update]]:
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        variant = module.lora_variant.get("default")
        plain = variant is None or isinstance(variant, DoraLinearVariant)
        if type(module) is not Linear or not plain or module.lora_bias["default"] or module.fan_in_fan_out:
            raise InputError(
                f"{said}: {own_name(name)} is adapted as {type(module.base_layer).__name__} with "
                f"{type(variant or module).__name__}; only LoRA, rsLoRA and DoRA of linear layers can be merged"
            )
        magnitude = stored[f"{name}.lora_magnitude_vector"] if variant else None
        a, b = stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"]
        yield f"{own_name(name)}.weight", LowRank(a, b, magnitude, module.scaling["default"])
    for name, tensor in stored.items():
        if ".lora_" not in name:
            yield own_name(name), Replaced(tensor)


def changes_something(base: dict[str, Stored], updates: dict[str, Update]) -> bool:
    """Whether any update would change the base, before rounding; stops at the first that would."""
    return any(_changes(base[name], update) for name, update in updates.items())


def _changes(old: Stored, update: Update) -> bool:
    if isinstance(update, LowRank) and update.magnitude is None:
        return update.scale != 0 and bool(read_tensor(update.b).any()) and bool(read_tensor(update.a).any())
    # A magnitude that nothing has changed is the rows' length, perhaps rounded to 16 bits.
    allowed = 5e-3 if isinstance(update, LowRank) else 0.0
    rows = Rows(update)
    with open(old.path, "rb") as file:
        for first, count in row_blocks(old):
            before = read_rows(file.fileno(), old, first, count).float()
            after = rows.apply(before.clone(), first)
            if not torch.allclose(after, before, rtol=allowed, atol=0.0):
                return True
    return False
