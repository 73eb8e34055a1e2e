"""Losses, gradients and weights that are no numbers: found before a checkpoint can keep them, and named."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sarlang_sft.arguments import TrainArguments
from sarlang_sft.checkpoints import last_complete
from sarlang_sft.errors import InputError

MOST_NAMED = 10  # images in a message


class Diverged(NamedTuple):
    """What is no number, and the names of the images that were seen then, batch by batch."""

    what: str
    images: list[list[str]]


def find_diverged(
    losses: list[torch.Tensor], gradient_norm: torch.Tensor | float | None, images: list[list[str]]
) -> Diverged | None:
    """What of one step on this rank is nan or infinite; waits for the device once.

    Args:
        losses: One scalar per batch.
        gradient_norm: Of all ranks' gradient; None is not looked at.
        images: Names of every batch's images.
    """
    norms = [] if gradient_norm is None else [torch.as_tensor(gradient_norm).to(losses[0])]
    values = torch.stack([*losses, *norms])
    if values.isfinite().all():
        return None
    numbers = values.isfinite().tolist()[: len(losses)]
    if all(numbers):
        what = f"the gradient is {values[-1].item()}, though the loss of this rank is a number"
        return Diverged(what, images)
    first = numbers.index(False)
    seen = [names for names, finite in zip(images, numbers, strict=True) if not finite]
    return Diverged(f"the loss is {values[first].item()}", seen)


def are_numbers(parameters: Iterable[nn.Parameter], cut: bool) -> bool:
    """Whether everything trainable is finite on this rank.

    Args:
        cut: ZeRO-3 has left a part of each parameter on every rank.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    parts = [parameter.ds_tensor if cut else local_part(parameter) for parameter in trained]
    return bool(torch.stack([part.isfinite().all() for part in parts]).all())


def local_part(parameter: nn.Parameter) -> torch.Tensor:
    """What FSDP2 has left of a parameter on this rank, or all of it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def stop_diverged(found: Diverged, step: int, args: TrainArguments) -> None:
    """End a training whose numbers cannot be gone on with.

    Raises:
        InputError: Always; it names the step, the rank, the images, the last complete checkpoint and the ways out.
    """
    names = list(dict.fromkeys(chain.from_iterable(found.images)))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    seen = f" Its images here: {', '.join(names[:MOST_NAMED])}{more}." if names else ""
    checkpoint = last_complete(Path(args.output_dir))
    if checkpoint:
        way_out = (
            f"The last complete checkpoint is {checkpoint}. Look at the images; start the same command again, which "
            f"goes on from there (or by resume from an earlier one), with a lower max_grad_norm (now "
            f"{args.max_grad_norm}); or begin anew in another output_dir with a lower learning_rate (now "
            f"{args.learning_rate})"
        )
    else:
        way_out = (
            "There is no complete checkpoint. Look at the images, and begin anew with a lower learning_rate (now "
            f"{args.learning_rate}) or max_grad_norm (now {args.max_grad_norm})"
        )
    raise InputError(f"step {step}, rank {args.process_index}: {found.what}.{seen} {way_out}")
