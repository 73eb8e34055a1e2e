"""The supervised tokens of a batch as answers: where each begins, its number, and its tokens' weights."""

import torch

from sarlang_sft.collate import IGNORED


def first_tokens(labels: torch.Tensor) -> torch.Tensor:
    """(B, L) bool: the first supervised token of every answer."""
    first = labels != IGNORED
    first[:, 1:] &= labels[:, :-1] == IGNORED
    return first


def answers(labels: torch.Tensor) -> torch.Tensor:
    """Number the answers of a batch: (B, L) int64, 1, 2, ... on supervised tokens, 0 elsewhere.

    An answer is a run of supervised tokens; questions, trunks and padding lie between them.
    """
    return first_tokens(labels).flatten().cumsum(0).view_as(labels) * (labels != IGNORED)


def answer_weights(labels: torch.Tensor) -> torch.Tensor:
    """(B, L) float32 weights that sum to 1 over the tokens of every answer; 0 on tokens that are not supervised."""
    number = answers(labels)
    sizes = torch.bincount(number.flatten())
    return torch.where(number > 0, 1.0 / sizes[number], 0.0)
