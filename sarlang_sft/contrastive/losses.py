"""Contrastive losses over the batches of all ranks, in which nothing true counts as false.

Pairs of the same image, or whose caption is also one of the image's captions, are no negatives of each other: with
five captions an image, InfoNCE would push them apart. Sources: CLIP (arXiv 2103.00020, figure 3), and with several
positives supervised contrastive learning (arXiv 2004.11362, equation 2).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from torch.nn import functional

NEGATIVES = ("masked", "multi_positive", "plain")


class Rows(NamedTuple):
    """What this rank's rows of a batch stand for, beside the columns of all ranks.

    Attributes:
        image_knows: (b, B) bool, whether a text of the whole batch is true of this rank's image.
        text_knows: (b, B) bool, whether this rank's text is true of an image of the whole batch.
        valid: (B,) bool, False where an image could not be read: neither row nor column counts.
        first: Place of this rank's first row in the whole batch.
    """

    image_knows: torch.Tensor
    text_knows: torch.Tensor
    valid: torch.Tensor
    first: int


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks in order; without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, rows: Rows, negatives: str
) -> torch.Tensor:
    """This rank's share of the symmetric loss over the batch of all ranks; the mean over the ranks is the loss.

    Gradients go through the gathered features, so that after averaging over the ranks (as DDP does) they are those of
    one process with the whole batch.

    Args:
        image_features: (b, D) of length 1.
        text_features: (b, D) of length 1.
        scale: Scalar, the inverse temperature.
        negatives: plain: all other texts are negatives (the published loss); masked: those that are true of the image
            are left out; multi_positive: they are positives, too, with equal weight.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    own = dist.get_rank() if dist.is_initialized() else 0
    gathered = ClipLoss(local_loss=True, gather_with_grad=True, rank=own, world_size=ranks)
    per_image, per_text = gathered.get_logits(image_features, text_features, scale)
    places = torch.arange(len(per_image), device=per_image.device)
    mine = torch.zeros_like(rows.image_knows)
    mine[places, rows.first + places] = True
    counted = rows.valid[rows.first : rows.first + len(per_image)]
    weight = counted.float() * ranks / rows.valid.sum().clamp(min=1)
    losses = [
        _cross_entropy(logits.float(), mine, known, rows.valid, negatives)
        for logits, known in ((per_image, rows.image_knows), (per_text, rows.text_knows))
    ]
    return ((losses[0] + losses[1]) / 2 * weight).sum()


def _cross_entropy(
    logits: torch.Tensor, mine: torch.Tensor, known: torch.Tensor, valid: torch.Tensor, negatives: str
) -> torch.Tensor:
    """(b,) losses of rows of (b, B) logits."""
    left_out = ~valid & ~mine
    if negatives == "masked":
        left_out = left_out | (known & ~mine)
    logits = logits.masked_fill(left_out, -torch.inf)
    if negatives != "multi_positive":
        return functional.cross_entropy(logits, mine.int().argmax(dim=1), reduction="none")
    positive = (known & valid) | mine
    likely = logits.log_softmax(dim=1).masked_fill(~positive, 0)
    return -likely.sum(dim=1) / positive.sum(dim=1)


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """This rank's share of the mean over all caption tokens of all ranks (open_clip averages over each rank's own).

    Args:
        logits: (b, L, V).
        labels: (b, L) token ids; `pad` is not counted.
        tokens: Scalar, what to divide by: caption tokens of all ranks over the number of ranks.
    """
    total = functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=pad, reduction="sum")
    return total / tokens.clamp(min=1)
