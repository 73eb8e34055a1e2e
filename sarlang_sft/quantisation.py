"""The language model's linear layers in 4 or 8 bits; the vision tower, the projector and the head stay as they are."""

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from sarlang_sft.backbones import Backbone, linear_modules
from sarlang_sft.errors import InputError


def bits_of(load_in_4bit: bool | None, load_in_8bit: bool | None) -> int:
    """4, 8, or 0 for weights as they are; raises [`InputError`] if both are wanted."""
    if load_in_4bit and load_in_8bit:
        raise InputError("load_in_4bit and load_in_8bit: choose one of them")
    return 4 if load_in_4bit else 8 if load_in_8bit else 0


def quantisation(skeleton: PreTrainedModel, backbone: Backbone, bits: int, dtype: str) -> BitsAndBytesConfig | None:
    """How the weights are quantised while they load.

    The layers are named by inspection: the lists that libraries bring miss renamed towers, which are then quantised
    too (unslothai/unsloth#4209).

    Args:
        skeleton: The model without weights, see `build_skeleton`.
        bits: 4 is NF4 with double quantisation (QLoRA, arXiv 2305.14314), 8 is LLM.int8, 0 is none.
        dtype: In which the 4-bit weights compute; `auto` is the one that the model is stored in.
    """
    if not bits:
        return None
    chosen = set(linear_modules(skeleton, backbone, "language_model"))
    kept = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear) and name not in chosen]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=(skeleton.config.dtype or "float32") if dtype == "auto" else dtype,
        llm_int8_skip_modules=kept,
    )
