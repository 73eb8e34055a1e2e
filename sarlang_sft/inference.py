"""A tuned model from its folders, and its greedy answers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, ProcessorMixin

from sarlang_sft.backbones import Backbone, find_backbone, training_template
from sarlang_sft.collate import to_messages
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import load_ops
from sarlang_sft.loading import build_skeleton, load_processor, load_weights
from sarlang_sft.quantisation import quantisation


@dataclass
class TunedModel:
    """A model ready to answer, with the processor and the image operations it was trained with."""

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    backbone: Backbone
    image_ops: list[str]


@dataclass(frozen=True)
class Asked:
    """Pictures and the turns about them; the last question is to be answered."""

    pictures: list[Image.Image]
    turns: list[dict[str, str]]


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Put an adapter on its base model; raises [`InputError`] unless every one of its tensors finds its place."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"--adapter {adapter}: no adapter there (adapter_model.safetensors is missing)")
    try:
        tuned = PeftModel.from_pretrained(model, str(adapter), config=PeftConfig.from_pretrained(str(adapter)))
    except (ValueError, RuntimeError, SafetensorError, HFValidationError) as error:
        raise InputError(f"--adapter {adapter}: does not fit the model: {error}") from error
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
    loaded = set(get_peft_model_state_dict(tuned))
    if stored != loaded:
        raise InputError(
            f"--adapter {adapter}: does not fit the model: {len(stored - loaded)} of its tensors have no place, "
            f"{len(loaded - stored)} are missing"
        )
    return tuned


def load_tuned(
    model: str, adapter: str | None, dtype: str = "auto", max_pixels: int | None = None, bits: int = 0
) -> TunedModel:
    """Load a model, and the adapter on it if given, on the GPU if there is one.

    The processor and the image operations are those kept with the adapter, or else with the model.

    Args:
        bits: 4 or 8 quantise the language model as in training with QLoRA or int8, see `quantisation`; 0 does not.
    """
    backbone = find_backbone(model)
    home = adapter or model
    if adapter is not None and not Path(adapter).is_dir():
        raise InputError(f"--adapter {adapter}: no such folder")
    processor = load_processor(home, backbone, max_pixels)
    quantised = quantisation(build_skeleton(model, backbone), backbone, bits, dtype) if bits else None
    loaded = load_weights(model, backbone, dtype, quantization_config=quantised)
    tuned = load_adapter(loaded, Path(adapter)) if adapter else loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tuned = tuned if bits else tuned.to(device)  # a quantised model is where it belongs
    return TunedModel(tuned.eval(), processor, backbone, load_ops(Path(home)))


def prompts(tuned: TunedModel, asked: list[Asked]) -> list[str]:
    """The chat of each item up to where its answer begins, every image one placeholder."""
    return [
        tuned.processor.tokenizer.apply_chat_template(
            to_messages(item.turns, len(item.pictures), answered=False),
            chat_template=training_template(tuned.processor, tuned.backbone),
            tokenize=False,
            add_generation_prompt=True,
        )
        for item in asked
    ]


def encode(tuned: TunedModel, asked: list[Asked]) -> dict[str, torch.Tensor]:
    """Left-padded model inputs that end where the answers begin."""
    pictures = [picture for item in asked for picture in item.pictures]
    return tuned.processor(
        images=pictures or None, text=prompts(tuned, asked), padding=True, padding_side="left", return_tensors="pt"
    ).to(tuned.model.device)


@torch.inference_mode()
def answer_each(tuned: TunedModel, asked: list[Asked], max_new_tokens: int) -> list[tuple[str, float]]:
    """The greedy answer to each last question, with the sum of its tokens' log-probabilities; every prompt whole."""
    inputs = encode(tuned, asked)
    output = tuned.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop_tokens(tuned),
        return_dict_in_generate=True,
        output_logits=True,
        # a released generation config may hold sampling defaults, which greedy decoding would warn about
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=None,
    )
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    stops = torch.tensor(stop_tokens(tuned), device=tokens.device)
    ended = torch.isin(tokens, stops).int().cumsum(dim=1)
    counted = (ended - torch.isin(tokens, stops).int()) == 0  # up to and including the first stop token
    logprobs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    totals = (logprobs * counted).sum(dim=1).tolist()
    texts = tuned.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [(text.strip(), total) for text, total in zip(texts, totals, strict=True)]


def stop_tokens(tuned: TunedModel) -> list[int]:
    """The tokens that end an answer: the tokenizer's, which training teaches, and those of the generation config."""
    stops = tuned.model.generation_config.eos_token_id
    named = stops if isinstance(stops, list) else [stops]
    return sorted({token for token in [*named, tuned.processor.tokenizer.eos_token_id] if token is not None})
