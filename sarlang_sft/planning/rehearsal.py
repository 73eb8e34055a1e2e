"""One training step walked through on the meta device: nothing is computed, every byte that it would take is counted.

The model's own code runs, so that all families, adapters and kinds of checkpointing are counted as they are.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.planning.model import Batch
from sarlang_sft.planning.standins import Casting, FusedHead, Precision


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one forward and backward pass beside weights and optimiser.

    Attributes:
        vision: Kept by the vision tower and the projector until the backward pass comes back to them.
        language_model: Kept by the language model's layers.
        head: On top of both while the head works: tiles of logits, and gradients.
        transient: On top of both at the worst moment: a recomputed layer, or the head.
        peak: All of them and the gradients of what trains, at the moment when the sum is highest.
    """

    vision: int
    language_model: int
    head: int
    transient: int
    peak: int

    @property
    def activations(self) -> int:
        """Bytes at the worst moment without the gradients of what trains."""
        return self.vision + self.language_model + self.transient


class _ByteCounter(TorchDispatchMode):
    """Bytes of the storages that were made while it is active and still live, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.gradients = self.activations = 0  # of what trains; the most of everything else
        self.lately = 0  # the most of everything else since it was set
        self.seen: set[int] = set()

    def ignore(self, tensors: list[torch.Tensor]) -> None:
        """What exists before the step, such as weights."""
        self.seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return result

    def add_gradient(self, parameter: torch.Tensor) -> None:
        """Called when a parameter's gradient is there."""
        self.gradients += parameter.grad.untyped_storage().nbytes()

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        weakref.finalize(storage, self._remove, key, size)
        self.peak = max(self.peak, self.live)
        self.activations = max(self.activations, self.live - self.gradients)
        self.lately = max(self.lately, self.live - self.gradients)

    def _remove(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def rehearse(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    batch: Batch,
    precision: Precision,
    checkpointed: Callable[[str], bool],
    quantised: list[nn.Module],
) -> StepBytes:
    """Walk a batch through a model, forwards and backwards.

    Args:
        model: On the meta device, with its adapters, as it would train.
        checkpointed: Whether the layer of this name computes its activations twice instead of keeping them.
        quantised: Its layers of 4 or 8 bits.
    """
    counter = _ByteCounter()
    counter.ignore([*model.parameters(), *model.buffers()])
    casting = Casting(precision, {id(layer.weight) for layer in quantised})
    _checkpoint(model, checkpointed, casting)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(counter.add_gradient) for parameter in trained]
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    pictures = _pictures(processor, batch)
    with counter, casting:
        ids = torch.empty(batch.rows, batch.tokens, dtype=torch.long, device="meta")
        embeddings, vision = _embed(whole, ids, pictures, counter)
        # One number stands for masks that keep next to nothing: without any, transformers would look at positions.
        sides = (batch.rows, 1, batch.tokens, batch.tokens) if precision.dense_mask else (1, 1, 1, 1)
        mask = torch.empty(sides, dtype=torch.bool, device="meta")
        hidden = whole.model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=_positions(whole, ids), use_cache=False
        ).last_hidden_state
        del embeddings, mask
        language_model = counter.live - vision
        scored = hidden.reshape(-1, hidden.shape[-1])[: batch.rows * batch.scored]
        del hidden
        weight = whole.get_output_embeddings().weight
        counter.lately = counter.live
        head: list[int] = []
        scored.register_hook(lambda gradient: head.append(counter.lately))
        loss = FusedHead.apply(scored, weight, precision.autocast or scored.dtype, precision.on_cuda).sum()
        del scored
        casting.end_forward()
        torch.autograd.backward(loss)
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    kept = vision + language_model
    return StepBytes(vision, language_model, head[0] - kept, counter.activations - kept, counter.peak)


def _checkpoint(model: PreTrainedModel | PeftModel, checkpointed: Callable[[str], bool], casting: Casting) -> None:
    # Function modes do not reach the recomputation by themselves.
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), casting)})
    model.train()
    twice = False
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = checkpointed(name)
            twice |= module.gradient_checkpointing
    if twice and isinstance(model, PeftModel):
        model.enable_input_require_grads()  # as TRL does


def _embed(
    model: PreTrainedModel, ids: torch.Tensor, pictures: dict[str, torch.Tensor], counter: _ByteCounter
) -> tuple[torch.Tensor, int]:
    """(rows, tokens, hidden) of texts and images, and the bytes that the vision tower and the projector keep."""
    embeddings = model.get_input_embeddings()(ids)
    if not pictures:
        return embeddings, 0
    before = counter.live
    pictures = {name: value.to("meta") if value.is_floating_point() else value for name, value in pictures.items()}
    features = model.model.get_image_features(**pictures).pooler_output
    features = torch.cat(tuple(features)) if isinstance(features, tuple | list) else features
    where = torch.empty(*ids.shape, 1, dtype=torch.bool, device="meta").expand_as(embeddings)
    embeddings = embeddings.masked_scatter(where, features.to(embeddings.dtype))
    del features, where, pictures
    return embeddings, counter.live - before


def _pictures(processor: ProcessorMixin, batch: Batch) -> dict[str, torch.Tensor]:
    """What the image processor gives for the batch's images, by the names that the model takes."""
    if not batch.images:
        return {}
    blank = Image.new("RGB", (batch.width, batch.height))
    return dict(processor.image_processor(images=[blank] * batch.images, return_tensors="pt"))


def _positions(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor | None:
    rope = model.config.get_text_config().rope_parameters or {}
    axes = (3,) if "mrope_section" in rope else ()
    return torch.empty(*axes, *ids.shape, dtype=torch.long, device="meta")
