"""A large contrastive batch in the memory of a small one: features are cached, gradients are those of the whole batch.

Every micro-batch goes through the towers twice: without gradient for its features, from which the loss of the whole
batch and its gradient by feature are computed, and once more with them (Gao et al., arXiv 2101.06983; open_clip's
`accum_freq` does the second pass with the loss of the whole batch each time). Exact, but for batch normalisation,
whose statistics are those of a micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Inputs = dict[str, torch.Tensor]
Outputs = dict[str, torch.Tensor]
FEATURES = ("image_features", "text_features")


def backward_of_batch(
    model: nn.Module,
    inputs: Inputs,
    micro_batch_size: int,
    loss_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    caption_loss_of: Callable[[Outputs], torch.Tensor] | None,
    backward: Callable[[torch.Tensor], None],
    without_sync: Callable[[], AbstractContextManager],
) -> dict[str, torch.Tensor]:
    """Leave the gradients of a batch in the model's parameters.

    Args:
        model: Called with `images`, `tokens` and `captions`, see `trainer.Towers`.
        inputs: `images` and `tokens`, (b, ...) each.
        micro_batch_size: Rows that go through the towers at a time; b or more: all at once.
        loss_of: Of all image features, text features and the scale.
        caption_loss_of: Of the outputs of a micro-batch; these are added up. None: no captions are asked for.
        backward: Of a loss; adds to the parameters' gradients.
        without_sync: Around backward passes after which ranks do not exchange gradients yet.

    Returns:
        `contrastive_loss`, and `caption_loss` if there is one; detached scalars.
    """
    captions = caption_loss_of is not None
    parts = list(_cut(inputs, micro_batch_size))
    if len(parts) == 1:
        outputs = model(**inputs, captions=captions)
        losses = {"contrastive_loss": loss_of(*(outputs[name] for name in FEATURES), outputs["logit_scale"])}
        if captions:
            losses["caption_loss"] = caption_loss_of(outputs)
        backward(sum(losses.values()))
        return {name: loss.detach() for name, loss in losses.items()}

    cached, states = [], []
    with torch.no_grad(), _statistics_kept(model):
        for part in parts:
            states.append(_random_state())
            outputs = model(**part, captions=False)
            cached.append([outputs[name] for name in FEATURES])
    leaves = [torch.cat(features).requires_grad_() for features in zip(*cached, strict=True)]
    scale = outputs["logit_scale"].detach().clone().requires_grad_()
    loss = loss_of(*leaves, scale)
    *by_feature, by_scale = torch.autograd.grad(loss, [*leaves, scale])
    losses = {"contrastive_loss": loss.detach()}
    if captions:
        losses["caption_loss"] = torch.zeros_like(losses["contrastive_loss"])
    for number, (part, state, *gradients) in enumerate(
        zip(parts, states, *(gradient.split(micro_batch_size) for gradient in by_feature), strict=True)
    ):
        last = number == len(parts) - 1
        with nullcontext() if last else without_sync(), _as_in(state):
            outputs = model(**part, captions=captions)
            surrogate = sum((outputs[name] * given).sum() for name, given in zip(FEATURES, gradients, strict=True))
            # Of the scale every part has the whole gradient; with weight 0 it stays in the graph, as DDP wants it.
            surrogate = surrogate + outputs["logit_scale"] * (by_scale if last else 0)
            if captions:
                caption = caption_loss_of(outputs)
                losses["caption_loss"] += caption.detach()
                surrogate = surrogate + caption
            backward(surrogate)
    return losses


def _cut(inputs: Inputs, size: int) -> Iterator[Inputs]:
    pieces = zip(*(values.split(size) for values in inputs.values()), strict=True)
    for piece in pieces:
        yield dict(zip(inputs, piece, strict=True))


def _random_state() -> list[torch.Tensor]:
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


@contextmanager
def _as_in(state: list[torch.Tensor]) -> Iterator[None]:
    """Draw the same dropout again; afterwards random numbers go on as if that had not been."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if len(state) > 1 else []):
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1])
        yield


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the batch's statistics, but notes them in one of both passes only."""
    layers = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    try:
        for module in layers:
            module.momentum = 0.0
        yield
    finally:
        for module, momentum in layers.items():
            module.momentum = momentum
