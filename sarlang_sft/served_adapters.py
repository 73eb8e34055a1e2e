"""Which adapters a server can apply: it loads them beside the base, and only onto its language model."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sarlang_sft.adapter_updates import WEIGHTS
from sarlang_sft.backbones import Backbone, component_of
from sarlang_sft.chat_protocol import ChatServer
from sarlang_sft.errors import InputError

CONFIG = "adapter_config.json"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes
_PREFIX = "base_model.model."


def check_served_adapter(server: ChatServer, model: str, adapter: Path, backbone: Backbone) -> None:
    """Raise [`InputError`] unless the server can apply an adapter, and serves one under the name that is asked.

    vLLM passes over updates of the vision tower and the projector (vllm-project/vllm#23796, #17660), refuses DoRA and
    modules that were trained in full, and scales by one rank for all layers; others do no better.

    Args:
        server: See `find_model`.
    """
    if obstacle := _obstacle(adapter, backbone):
        raise InputError(
            f"--adapter {adapter}: {obstacle}, which servers do not apply; merge it first: python "
            f"recipes/merge_adapter.py --base {model} --adapter {adapter} --out MERGED; serve that, as --model MERGED"
        )
    if server.parent is None:
        rank = _config(adapter)["r"]
        slots = min((size for size in VLLM_RANKS if size >= rank), default=rank)
        raise InputError(
            f"--served_model {server.model}: is no adapter at {server.base_url}; start the server with it, as in "
            f"`vllm serve {model} --enable-lora --max-lora-rank {slots} --lora-modules NAME={adapter}`; give that NAME"
        )


def check_no_adapter(server: ChatServer) -> None:
    """Raise [`InputError`] if the server applies an adapter that is not named."""
    if server.parent is not None:
        raise InputError(
            f"--served_model {server.model}: is an adapter on {server.parent} at {server.base_url}; name its folder "
            "with --adapter"
        )


def _obstacle(adapter: Path, backbone: Backbone) -> str | None:
    """Why a server could not do what the adapter does."""
    config = _config(adapter)
    names = _tensor_names(adapter)
    if config.get("use_dora"):
        return "is a DoRA"
    in_full = [name for name in names if ".lora_A." not in name and ".lora_B." not in name]
    if in_full:
        return f"holds modules that were trained in full (such as {in_full[0].removeprefix(_PREFIX)})"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "has layers of different ranks"
    modules = [name.removeprefix(_PREFIX).partition(".lora_")[0] for name in names]
    try:
        outside = [module for module in modules if component_of(module, backbone) != "language_model"]
    except ValueError as error:
        raise InputError(f"--adapter {adapter}: does not fit the model: {error}") from error
    return f"changes modules outside of the language model (such as {outside[0]})" if outside else None


def _config(adapter: Path) -> dict:
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--adapter {adapter}: no adapter there ({CONFIG}: {error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError(f"--adapter {adapter}: {CONFIG} describes no LoRA")
    return config


def _tensor_names(adapter: Path) -> list[str]:
    try:
        with safe_open(adapter / WEIGHTS, "pt") as file:
            return sorted(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"--adapter {adapter}: {WEIGHTS} is missing or not whole ({error})") from error
