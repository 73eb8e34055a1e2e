"""The rows of a step over all ranks, as the user declares them."""

import json
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.launch import this_launch


def accumulation_steps(global_batch_size: int, per_device: int, given: int, ranks: int) -> int:
    """How often each rank computes before a step, so that the step holds `global_batch_size` rows.

    Args:
        per_device: Rows that a rank computes at once.
        given: The option gradient_accumulation_steps: 1, its default, or a number that must be what comes out.

    Raises:
        InputError: The ranks do not divide it.
    """
    if global_batch_size < 1:
        raise InputError(f"global_batch_size {global_batch_size}: must be at least 1")
    at_once = ranks * per_device
    if global_batch_size % at_once:
        less = global_batch_size // at_once * at_once
        near = f"{less} or {less + at_once}" if less else str(at_once)
        fitting = [count for count in range(1, ranks) if global_batch_size % (count * per_device) == 0]
        fewer = f", or start {fitting[-1]} ranks" if fitting else ""
        raise InputError(
            f"global_batch_size {global_batch_size}: {ranks} ranks x per_device_train_batch_size {per_device} = "
            f"{at_once} rows at once do not divide it; set it to {near}{fewer}"
        )
    steps = global_batch_size // at_once
    if given not in (1, steps):
        raise InputError(
            f"gradient_accumulation_steps {given}: with global_batch_size {global_batch_size} it follows from the "
            f"number of ranks (here {steps}); leave it out"
        )
    return steps


def read_deepspeed(config: str | dict[str, Any]) -> dict[str, Any]:
    """What a DeepSpeed configuration says; raises [`InputError`] if it is no JSON object."""
    try:
        content = config if isinstance(config, dict) else json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"deepspeed {config}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"deepspeed {config}: is no JSON object; see deepspeed_configs")
    return content


def check_deepspeed_batch(config: str | dict[str, Any], per_device: int, steps: int) -> None:
    """Raise [`InputError`] if a DeepSpeed configuration declares another `train_batch_size` than this launch makes."""
    declared, ranks = read_deepspeed(config).get("train_batch_size", "auto"), this_launch().count
    if declared not in ("auto", ranks * per_device * steps):
        raise InputError(
            f"deepspeed {'' if isinstance(config, dict) else config}: its train_batch_size {declared} is not {ranks} "
            f"ranks x per_device_train_batch_size {per_device} x gradient_accumulation_steps {steps}; write "
            f'"auto" there and set --global_batch_size {declared}'
        )
