"""BERTScore of captions with an encoder from a local folder.

Source: Zhang et al., "BERTScore: Evaluating text generation with BERT", ICLR 2020, without idf weights and without
rescaling. As in its authors' package, the start and end tokens can be matched but do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.ngrams import Caption, Groups

NAMES = ("bert_precision", "bert_recall", "bert_f1")
BATCH = 64  # pairs of texts


@dataclass(frozen=True)
class Encoder:
    """Which model embeds the words: a folder, and the layer whose output is compared, counted from 1."""

    folder: Path
    layer: int


def find_encoder(folder: Path, layer: int | None) -> Encoder:
    """An encoder in a folder; without a layer three quarters of all are passed, as published for BERT: 9 of 12.

    Raises:
        InputError: The folder holds no encoder with safetensors weights, or it has no such layer.
    """
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(
            f"--bert_model {folder}: must be the folder of a model, with config.json and .safetensors files"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.is_encoder_decoder:
        raise InputError(f"--bert_model {folder}: is no plain encoder; take a model like BERT, RoBERTa or DeBERTa")
    layers = config.num_hidden_layers
    if layer is not None and not 1 <= layer <= layers:
        raise InputError(f"--bert_layer {layer}: must be from 1 to {layers}, the layers of {folder}")
    return Encoder(folder, layer or max(1, round(0.75 * layers)))


def bert_score(captions: Sequence[Caption], groups: Groups, encoder: Encoder) -> list[dict[str, float]]:
    """`bert_precision`, `bert_recall` and `bert_f1` of each group: means over its captions; the best reference counts.

    The texts should be as they were written, not tokenised. A caption without a word scores 0.
    """
    pairs = [(caption.predict, reference) for caption in captions for reference in caption.references]
    scores = _score_pairs(pairs, encoder)
    starts = np.cumsum([0, *(len(caption.references) for caption in captions[:-1])])
    best = np.maximum.reduceat(scores, starts, axis=0)
    return [dict(zip(NAMES, best[list(group)].mean(axis=0).tolist(), strict=True)) for group in groups]


def _score_pairs(pairs: list[tuple[str, str]], encoder: Encoder) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(
        encoder.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    ).to(device)
    model.eval()
    # Texts of like length share a batch, so that little is padded.
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    scores = np.zeros((len(pairs), len(NAMES)))
    for start in tqdm(range(0, len(pairs), BATCH), desc="BERTScore", unit=" batches", disable=None):
        batch = order[start : start + BATCH]
        predicted, references = (
            _embed(model, tokenizer, [pairs[one][side] for one in batch], encoder.layer) for side in (0, 1)
        )
        scores[batch] = _match(*predicted, *references).cpu().numpy()
    return scores


def _embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], layer: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # (texts, tokens, width) of unit length; which tokens there are, and which of them count: (texts, tokens) bool
    # RoBERTa counts positions from 2. A blank in front makes its first word one like the others.
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings - 2)
    inputs = tokenizer(
        [" " + text.strip() for text in texts],
        padding=True, truncation=True, max_length=limit, return_special_tokens_mask=True, return_tensors="pt",
    ).to(model.device)  # fmt: skip
    special = inputs.pop("special_tokens_mask").bool()
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
    there = inputs["attention_mask"].bool()
    return torch.nn.functional.normalize(hidden, dim=-1), there, there & ~special


def _match(
    predicted: torch.Tensor, predicted_there: torch.Tensor, predicted_counts: torch.Tensor,
    reference: torch.Tensor, reference_there: torch.Tensor, reference_counts: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    # (texts, 3): equations 1 to 3 of the paper
    alike = predicted @ reference.transpose(1, 2)
    alike = alike.masked_fill(~(predicted_there[:, :, None] & reference_there[:, None, :]), -1.0)
    precision = _mean_of(alike.amax(dim=2), predicted_counts)
    recall = _mean_of(alike.amax(dim=1), reference_counts)
    both = precision + recall
    f1 = torch.where(both > 0, 2 * precision * recall / both.clamp(min=1e-12), torch.zeros_like(both))
    return torch.stack([precision, recall, f1], dim=1)


def _mean_of(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return (values * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
