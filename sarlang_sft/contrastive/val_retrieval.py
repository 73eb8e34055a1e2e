"""Retrieval on the split `val` while a model trains: images and texts shared out among the ranks, figures of all."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.contrastive.retrieval import TOP, all_positives_lists, hits, rank
from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.ranks import Ranks
from sarlang_sft.val_loss import share_out

AT_ONCE = 64  # images, and texts, that a rank encodes between two looks for a signal
Features = dict[int, torch.Tensor]  # by row of `Pairs.paths`, or `Pairs.texts`


def score_val(
    contrastive: ContrastiveModel, pairs: Pairs, ranks: Ranks, check_interrupted: Callable[[], None]
) -> dict[str, float]:
    """`mean_recall` and its six parts, protocol all-positives, and how many images are `unreadable`.

    Every rank must call it, and gets the same figures.

    Args:
        check_interrupted: Called between batches, equally often on every rank; what it raises ends the evaluation.

    Raises:
        InputError: None of the images can be read.
    """
    images = _encode(partial(_images, contrastive, pairs), len(pairs.paths), ranks, check_interrupted)
    texts = _encode(partial(_texts, contrastive, pairs), len(pairs.texts), ranks, check_interrupted)
    if not images:
        raise InputError(f"val: none of {len(pairs.paths)} images can be read, such as {pairs.paths[0]}")
    rows = np.flatnonzero(np.isin(pairs.image, list(images)))
    lists = all_positives_lists(pairs, rows)
    both = rank(_stack(images, len(pairs.paths)), _stack(texts, len(pairs.texts)), lists, progress=False)
    recalls = {
        f"{name}_r{top}": float(hits(found, top).mean())
        for name, found in zip(("i2t", "t2i"), both, strict=True)
        for top in TOP
    }
    unreadable = len(pairs.paths) - len(images)
    return {"mean_recall": float(np.mean(list(recalls.values()))), **recalls, "unreadable": unreadable}


def _encode(encode: Callable[[list[int]], Features], count: int, ranks: Ranks, check: Callable[[], None]) -> Features:
    """The features of all ranks; each encodes its share."""
    own: Features = {}
    for numbers in share_out(count, ranks.own, ranks.count, AT_ONCE):
        check()
        own |= encode(numbers)
    return {number: feature for part in ranks.gather(own) for number, feature in part.items()}


def _images(contrastive: ContrastiveModel, pairs: Pairs, numbers: list[int]) -> Features:
    read = {}
    for number in numbers:
        try:
            read[number] = contrastive.read(pairs.paths[number])
        except UnreadableImageError:  # counted
            continue
    if not read:
        return {}
    pixels = torch.stack(list(read.values())).to(contrastive.device)
    return dict(zip(read, contrastive.model.encode_image(pixels, normalize=True).float().cpu(), strict=True))


def _texts(contrastive: ContrastiveModel, pairs: Pairs, numbers: list[int]) -> Features:
    if not numbers:
        return {}
    tokens = contrastive.tokenizer([pairs.texts[number] for number in numbers]).to(contrastive.device)
    return dict(zip(numbers, contrastive.model.encode_text(tokens, normalize=True).float().cpu(), strict=True))


def _stack(features: Features, count: int) -> torch.Tensor:
    """(count, D); rows of what could not be read are never looked at."""
    example = next(iter(features.values()))
    return torch.stack([features.get(number, torch.zeros_like(example)) for number in range(count)])
