"""Whether a merged model answers as its base with the adapter does: logits on sample inputs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sarlang_sft.errors import InputError
from sarlang_sft.inference import Asked, TunedModel, encode, load_tuned
from sarlang_sft.sarlang import VQA_PROMPT
from sarlang_sft.sarlang_texts import CAPTION_PROMPT

# Largest logit difference that rounding the merged weights may make, as a part of the logits' standard deviation.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}
# Beyond this part of what the adapter does to the logits, the merged model is no longer the adapted one.
LARGEST_LOSS = 0.5


@dataclass(frozen=True)
class Parity:
    """What was measured over the logits of all sample inputs, with the models loaded in one dtype.

    `max_abs_diff` is between merged and adapted model, `effect` between adapted model and base, `logit_std` is the
    standard deviation of the adapted model's logits.
    """

    max_abs_diff: float
    effect: float
    logit_std: float
    dtype: str
    samples: int


def sample_inputs(tuned: TunedModel) -> list[dict[str, torch.Tensor]]:
    """Model inputs of three noise pictures with a caption prompt, a question, and a text-only question."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(2)]
    question = VQA_PROMPT.replace("{question}", "How many ships are in the image?")
    return [
        encode(tuned, [Asked(shown, [{"question": text, "answer": ""}])])
        for shown, text in [(pictures[:1], CAPTION_PROMPT), (pictures[1:], question), ([], question)]
    ]


@torch.inference_mode()
def _logits(tuned: TunedModel, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([tuned.model(**item).logits.flatten().float().cpu() for item in inputs])


@dataclass(frozen=True)
class Wanted:
    """The logits of the base and of base + adapter, and the dtype in which they were computed."""

    before: torch.Tensor
    adapted: torch.Tensor
    dtype: torch.dtype


def wanted_logits(base: str, adapter: Path, said: str, dtype: str) -> Wanted:
    """What the merged model must give; raises [`InputError`] if the adapter changes no logit."""
    tuned = load_tuned(base, str(adapter), dtype)
    inputs = sample_inputs(tuned)
    with tuned.model.disable_adapter():
        before = _logits(tuned, inputs)
    adapted = _logits(tuned, inputs)
    if torch.equal(before, adapted):
        raise InputError(f"{said}: changes no logit of the base; it is untrained or belongs to another model")
    return Wanted(before, adapted, tuned.model.get_base_model().dtype)


def compare_logits(wanted: Wanted, merged: Path, dtype: str) -> Parity:
    """Measure a merged model, loaded from its folder alone in the same dtype."""
    tuned = load_tuned(str(merged), None, dtype)
    inputs = sample_inputs(tuned)
    return Parity(
        max_abs_diff=float((_logits(tuned, inputs) - wanted.adapted).abs().max()),
        effect=float((wanted.adapted - wanted.before).abs().max()),
        logit_std=float(wanted.adapted.std()),
        dtype=str(wanted.dtype).removeprefix("torch."),
        samples=len(inputs),
    )


def check_parity(parity: Parity, stored: torch.dtype, said: str) -> None:
    """Raise [`InputError`] if the difference is larger than rounding the weights can make it.

    Args:
        stored: The dtype in which the merged weights lie on the disk.
    """
    allowed = min(TOLERANCE[stored] * parity.logit_std, LARGEST_LOSS * parity.effect)
    if not parity.max_abs_diff <= allowed:
        name = str(stored).removeprefix("torch.")
        raise InputError(
            f"{said}: merging in {name} changes the logits by {parity.max_abs_diff:.3g} (computed in {parity.dtype}), "
            f"allowed are {allowed:.3g}; nothing was written. Merge with --dtype float32"
        )
