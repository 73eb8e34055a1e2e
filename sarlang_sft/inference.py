"""A tuned model from its folders, and its greedy answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from sarlang_sft.backbones import Backbone, find_backbone, load_processor, load_weights
from sarlang_sft.collate import to_messages
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_ops, load_picture
from sarlang_sft.records import read_dialogue_table


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


def load_tuned(model: str, adapter: str | None, dtype: str = "auto", max_pixels: int | None = None) -> TunedModel:
    """Load a model, and the adapter on it if given, on the GPU if there is one.

    The processor and the image operations are those kept with the adapter, or else with the model.
    """
    backbone = find_backbone(model)
    home = adapter or model
    if adapter is not None and not Path(adapter).is_dir():
        raise InputError(f"--adapter {adapter}: no such folder")
    processor = load_processor(home, backbone, max_pixels)
    loaded = load_weights(model, backbone, dtype)
    tuned = load_adapter(loaded, Path(adapter)) if adapter else loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TunedModel(tuned.to(device).eval(), processor, backbone, load_ops(Path(home)))


def encode(tuned: TunedModel, asked: list[Asked]) -> dict[str, torch.Tensor]:
    """Left-padded model inputs that end where the answers begin."""
    texts = [
        tuned.processor.tokenizer.apply_chat_template(
            to_messages(item.turns, len(item.pictures), answered=False),
            chat_template=tuned.backbone.training_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        for item in asked
    ]
    pictures = [picture for item in asked for picture in item.pictures]
    return tuned.processor(
        images=pictures or None, text=texts, padding=True, padding_side="left", return_tensors="pt"
    ).to(tuned.model.device)


@torch.inference_mode()
def answer(tuned: TunedModel, asked: list[Asked], max_new_tokens: int) -> list[tuple[str, float]]:
    """The greedy answer to each last question, with the sum of its tokens' log-probabilities."""
    inputs = encode(tuned, asked)
    output = tuned.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        # a released generation config may hold sampling defaults, which greedy decoding would warn about
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=None,
    )
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    stops = torch.tensor(_stop_tokens(tuned), device=tokens.device)
    ended = torch.isin(tokens, stops).int().cumsum(dim=1)
    counted = (ended - torch.isin(tokens, stops).int()) == 0  # up to and including the first stop token
    logprobs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    totals = (logprobs * counted).sum(dim=1).tolist()
    texts = tuned.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [(text.strip(), total) for text, total in zip(texts, totals, strict=True)]


def _stop_tokens(tuned: TunedModel) -> list[int]:
    stops = tuned.model.generation_config.eos_token_id
    return stops if isinstance(stops, list) else [stops]


@dataclass(frozen=True)
class Question:
    """One question of a data folder, with the turns before it as context."""

    id: str
    images: list[str]
    subset: str
    task: str
    turns: list[dict[str, str]]

    @property
    def label(self) -> str:
        """The stored answer."""
        return self.turns[-1]["answer"]


def read_questions(data: Path, split: str, subsets: list[str], tasks: list[str], limit: int | None) -> list[Question]:
    """The questions of a split in stored order; an empty list of subsets or tasks means all of them."""
    questions = [
        Question(f"{row['id']}#{index}", row["images"], row["subset"], row["task"], row["turns"][: index + 1])
        for row in read_dialogue_table(data, split).to_pylist()
        if (not subsets or row["subset"] in subsets) and (not tasks or row["task"] in tasks)
        for index in range(len(row["turns"]))
    ]
    if not questions:
        raise InputError(f"--data {data}: split {split} holds no question of {[*subsets, *tasks] or 'any kind'}")
    return questions[:limit]


def exchange_images(questions: list[Question]) -> list[Question]:
    """Every question about another scene: image i of n is replaced by image i + n // 2, in order of appearance.

    What a model still answers rightly then it knows without seeing (the blind baseline).
    """
    order = list(dict.fromkeys(tuple(question.images) for question in questions))
    shift = len(order) // 2
    other = {images: list(order[(index + shift) % len(order)]) for index, images in enumerate(order)}
    return [Question(q.id, other[tuple(q.images)], q.subset, q.task, q.turns) for q in questions]


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write beside a predictions file what it is made with.

    Raises:
        InputError: The file was begun with other settings, so that continuing it would mix two models' answers.
    """
    beside = path.with_suffix(".settings.json")
    if path.is_file() and beside.is_file():
        begun = json.loads(beside.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if begun.get(name) != value:
                raise InputError(
                    f"{path}: was begun with {name} {begun.get(name)!r}, not {value!r}; choose another --out"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def predict_to_file(
    tuned: TunedModel, questions: list[Question], image_root: Path, path: Path, batch_size: int, max_new_tokens: int
) -> tuple[int, list[str]]:
    """Append the answer of every question that `path` does not hold yet, one JSON line each.

    Returns:
        How many were written, and the images that could not be read: their questions stay unanswered.
    """
    done = _answered(path)
    left = [question for question in questions if question.id not in done]
    unknown = done - {question.id for question in questions}
    if unknown:
        raise InputError(
            f"{path}: holds answers to other questions (such as {min(unknown)}); remove it or choose another --out"
        )
    with open(path, "a", encoding="utf-8") as file, tqdm(total=len(left), desc=path.stem, unit=" answers") as progress:
        unreadable: set[str] = set()
        written = 0
        for batch in _batches(left, batch_size):
            pictures = {}
            for image in {image for question in batch for image in question.images} - unreadable:
                try:
                    pictures[image] = load_picture(path_inside(image_root, image), tuned.image_ops)
                except InputError:
                    unreadable.add(image)
            progress.update(len(batch))
            batch = [question for question in batch if not unreadable & set(question.images)]
            if not batch:
                continue
            asked = [Asked([pictures[image] for image in question.images], question.turns) for question in batch]
            for question, (text, logprob) in zip(batch, answer(tuned, asked, max_new_tokens), strict=True):
                row: dict[str, Any] = {
                    "id": question.id,
                    "image": question.images[0] if question.images else "",
                    "subset": question.subset,
                    "task": question.task,
                    "question": question.turns[-1]["question"],
                    "label": question.label,
                    "predict": text,
                    "logprob": round(logprob, 4),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            written += len(batch)
    return written, sorted(unreadable)


def _answered(path: Path) -> set[str]:
    """Ids in a half-written file; a torn last line is cut off."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    try:
        return {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no predictions file; remove it or choose another --out") from error


def _batches(questions: list[Question], size: int) -> Iterator[list[Question]]:
    """Questions of about one length together: short answers are not held up by captions."""
    ordered = sorted(questions, key=lambda question: (question.task == "description", question.subset))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
