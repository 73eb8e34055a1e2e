"""Where a model that is to be released comes from: its base, its training, and the adapter if it is one."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from sarlang_sft.adapter_updates import WEIGHTS
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.errors import InputError
from sarlang_sft.run_files import RUN
from sarlang_sft.scoring.predictions import read_json
from sarlang_sft.trainable import own_name

ADAPTER, MERGED, TRAINED = "adapter", "merged", "trained"
STATE = "trainer_state.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
_LANGUAGE_MODEL = tuple(
    f"{prefix}." for backbone in BACKBONES.values() for prefix in backbone.components["language_model"]
)


class Adapter(NamedTuple):
    """An adapter's kind, and why vLLM cannot apply it (None if it can)."""

    config: dict[str, Any]
    tensors: int
    unserved: str | None

    @property
    def served_rank(self) -> int:
        """The smallest --max-lora-rank of vLLM that holds it."""
        return min(rank for rank in SERVED_RANKS if rank >= self.config["r"])


class Training(NamedTuple):
    """A run: its `state`, what it is made of, and how far it came (`global_step` and `epoch`, None if unknown)."""

    state: str
    facts: dict[str, Any]
    steps: int | None
    epochs: float | None


class License(NamedTuple):
    """A licence by the hub's name for it; where that is `other`, its own name and address."""

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or self.id


class Base(NamedTuple):
    """The base model.

    Attributes:
        name: On the hub; None if it is not known to be there.
        commit: Of the hub's.
        fingerprint: Of the files of a folder.
        path: What it was called in training: a hub name, or a folder.
    """

    name: str | None
    commit: str | None
    fingerprint: str | None
    path: str
    license: License | None


def kind_of(folder: Path) -> str:
    """`adapter`, `merged` or `trained`; raises [`InputError`] if there is no model."""
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {folder}: no model there (neither config.json nor adapter_config.json)")
    return TRAINED if (folder / RUN).is_file() else MERGED


def read_adapter(folder: Path) -> Adapter:
    """An adapter's configuration and its tensors' names; raises [`InputError`] if it is no LoRA or cannot be read."""
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise InputError(f"--model {folder}: is no LoRA but {config.get('peft_type')}; LoRA and DoRA can be released")
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = [own_name(name) for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError) as error:
        raise InputError(f"--model {folder}: {WEIGHTS} cannot be read ({error})") from error
    outside = [name for name in names if not name.startswith(_LANGUAGE_MODEL)]
    reasons = [
        (outside, f"{len(outside)} of its {len(names)} tensors lie outside the language model (such as {{}})"),
        ([name for name in names if ".lora_" not in name], "it holds weights trained in full (such as {})"),
        (["DoRA"] * bool(config.get("use_dora")), "it is a {}"),
        (list(config.get("rank_pattern") or {}), "its layers have several ranks"),
        (list(config.get("alpha_pattern") or {}), "its layers have several scales (lora_alpha)"),
        ([str(config["r"])] * (config["r"] > SERVED_RANKS[-1]), "its rank {} is above vLLM's largest"),
    ]
    unserved = next((reason.format(found[0]) for found, reason in reasons if found), None)
    return Adapter(config, len(names), unserved)


def read_training(folder: Path | None) -> Training | None:
    """The run in an output folder; None if there is none."""
    if folder is None or not (folder / RUN).is_file():
        return None
    run = read_json(folder / RUN)
    if not run.keys() >= {"state", "facts"} or not run["facts"].keys() >= {"options", "base", "data", "versions"}:
        raise InputError(f"{folder / RUN}: is no run's file")
    state = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    return Training(run["state"], run["facts"], state.get("global_step"), state.get("epoch"))


def read_base(
    named: str | None, training: Training | None, merge: dict[str, Any] | None, adapter: Adapter | None
) -> Base:
    """The base model as the run, the merge or the adapter recorded it.

    Args:
        named: Its name on the hub, as the user states it.

    Raises:
        InputError: Another model of the hub was recorded.
    """
    recorded = training.facts["base"] if training else (merge or {}).get("base_fingerprint") or ""
    path = training.facts["options"]["model_name_or_path"] if training else (merge or {}).get("base") or ""
    if adapter and not path:
        path = adapter.config.get("base_model_name_or_path") or ""
    name, _, commit = recorded.rpartition("@")
    if not recorded and HUB_NAME.fullmatch(path) and not Path(path).is_dir():
        name = path
    if named and name and named != name:
        raise InputError(f"--base {named}: the base model was {name}; leave --base out")
    name = named or name or None
    fingerprint = recorded if recorded and "@" not in recorded else None
    return Base(name, None if fingerprint else commit or None, fingerprint, path, _license_of(path, name))


def _license_of(path: str, name: str | None) -> License | None:
    """The licence in the base model's own card, in its folder or in the hub's cache."""
    beside = str(Path(path) / "README.md") if path else None
    cached = try_to_load_from_cache(name, "README.md") if name else None
    for card in (beside, cached):
        if isinstance(card, str) and Path(card).is_file():
            front = ModelCard.load(card, ignore_metadata_errors=True).data
            if isinstance(front.license, str):
                link = front.license_link
                if name and link and "://" not in link:
                    link = f"https://huggingface.co/{name}/blob/main/{link}"
                return License(front.license, front.license_name, link)
    return None
