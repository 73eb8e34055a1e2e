"""An adapter merged into its base model, and the proof that the merged model is the adapted one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image

from sarlang_sft.errors import InputError
from sarlang_sft.imagery import save_ops
from sarlang_sft.inference import Asked, TunedModel, encode, load_tuned
from sarlang_sft.loading import stored_shapes
from sarlang_sft.sarlang import VQA_PROMPT
from sarlang_sft.sarlang_texts import CAPTION_PROMPT
from sarlang_sft.whole_output import whole_folder

# Largest logit difference that rounding the merged weights may make, as a part of the logits' standard deviation.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}
# Beyond this part of what the adapter does to the logits, the merged model is no longer the adapted one.
LARGEST_LOSS = 0.5
REPORT = "merge_report.json"


@dataclass(frozen=True)
class MergeReport:
    """What the parity check measured, over the logits of all sample inputs.

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


def stored_keys(model: str) -> set[str]:
    """Names of the tensors in a checkpoint's safetensors files; `model` is a folder or a hub name."""
    wanted = ["*.safetensors", "*.safetensors.index.json"]
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model, allow_patterns=wanted))
    return set(stored_shapes(folder))


@torch.inference_mode()
def _logits(tuned: TunedModel, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([tuned.model(**item).logits.flatten().float().cpu() for item in inputs])


def merge_adapter(base: str, adapter: str, out: Path, dtype: str = "auto") -> MergeReport:
    """Write base + adapter as one checkpoint with its processor and image operations, checked before it appears.

    Args:
        dtype: Of the merged weights; `auto` keeps the base's.

    Raises:
        InputError: `out` exists, the adapter does not fit the base or changes nothing, or the merged checkpoint,
            loaded from its folder, has other keys than the base or other logits than the adapted model.
    """
    if out.exists():
        raise InputError(f"--out {out}: exists; choose another folder")
    tuned = load_tuned(base, adapter, dtype)
    weights_dtype = tuned.model.get_base_model().dtype
    inputs = sample_inputs(tuned)
    with tuned.model.disable_adapter():
        before = _logits(tuned, inputs)
    adapted = _logits(tuned, inputs)
    if torch.equal(before, adapted):
        raise InputError(
            f"--adapter {adapter}: changes no logit of the base; it is untrained or belongs to another model"
        )

    with whole_folder(out) as building:
        tuned.model.merge_and_unload().save_pretrained(building)
        tuned.processor.save_pretrained(building)
        save_ops(building, tuned.image_ops)
        del tuned  # so that one model at a time is in memory
        merged = load_tuned(str(building), None, dtype)
        tied = {"lm_head.weight"} if merged.model.config.tie_word_embeddings else set()
        if stored_keys(str(building)) - tied != stored_keys(base) - tied:
            raise InputError(f"--adapter {adapter}: merged, it has other keys than {base}; nothing was written")
        after = _logits(merged, inputs)
        report = MergeReport(
            max_abs_diff=float((after - adapted).abs().max()),
            effect=float((adapted - before).abs().max()),
            logit_std=float(adapted.std()),
            dtype=str(weights_dtype).removeprefix("torch."),
            samples=len(inputs),
        )
        allowed = min(TOLERANCE[weights_dtype] * report.logit_std, LARGEST_LOSS * report.effect)
        if not report.max_abs_diff <= allowed:
            raise InputError(
                f"--adapter {adapter}: merging in {report.dtype} changes the logits by {report.max_abs_diff:.3g}, "
                f"allowed are {allowed:.3g}; nothing was written. Merge with --dtype float32"
            )
        (building / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report
