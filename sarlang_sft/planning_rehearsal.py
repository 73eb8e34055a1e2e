"""One training step walked through on the meta device: no number is computed, every byte that it would keep is counted.

The model's own code runs, so that all families, adapters and kinds of checkpointing are counted as they are. Three
things have no meta version and stand here by what they keep: fused attention (FlashAttention-2, arXiv 2307.08691:
queries, keys, values, output and one float32 per query and head, never the matrix), TRL's fused head (tiles of logits,
never all of them), and 4-bit weights (one layer's weights in 16 bits while it computes).
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, ProcessorMixin
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

COUNTED = "counted"
VOCABULARY_CHUNK = 32768  # width of a tile of TRL's fused head
MATRIX_PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.bmm, torch.Tensor.__matmul__, F.conv2d, F.conv3d)
MATRIX_PRODUCTS += (F.scaled_dot_product_attention,)


class Batch(NamedTuple):
    """What one device computes at once: rows of equally many tokens, the images in all of them, and scored tokens."""

    rows: int
    tokens: int
    images: int
    width: int
    height: int
    scored: int


@dataclass(frozen=True)
class Precision:
    """In which types a step computes.

    Attributes:
        autocast: Matrix products in this type, whatever the weights' type; None: in the weights' own.
        dense_mask: SDPA gets the mask of image trees in full; otherwise no mask is stored.
        on_cuda: Layer norms under autocast and the head's tiles are other ones on a CPU.
    """

    autocast: torch.dtype | None
    dense_mask: bool
    on_cuda: bool


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one forward and backward pass beside weights and optimiser.

    Attributes:
        vision: Kept by the vision tower and the projector until the backward pass comes back to them.
        language_model: Kept by the language model's layers.
        transient: On top of both at the worst moment: a recomputed layer, or the head's tiles.
        peak: All of them at the worst moment, with the gradients that exist by then.
        gradients_at_peak: Of which gradients of what trains.
    """

    vision: int
    language_model: int
    transient: int
    peak: int
    gradients_at_peak: int


class _ByteCounter(TorchDispatchMode):
    """Bytes of the storages that were made while it is active and still live, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
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
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients

    def _remove(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


class _Casting(TorchFunctionMode):
    """Autocast, which the meta device has not, and 4-bit layers; tensors of other devices follow to the meta device."""

    def __init__(self, precision: Precision, quantised: set[int]) -> None:
        super().__init__()
        self.precision = precision
        self.quantised = quantised
        self.casts: dict[int, torch.Tensor] = {}
        self.keeps_casts = True  # autocast does until the forward pass ends

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            with torch._C.DisableTorchFunction():
                args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
                if self.precision.autocast and func in MATRIX_PRODUCTS:
                    args, kwargs = tree_map_only(torch.Tensor, self._cast, (args, kwargs))
                elif self.precision.autocast and self.precision.on_cuda and func is F.layer_norm:
                    args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            if func is F.linear and id(args[1]) in self.quantised:
                return _QuantisedLinear.apply(*args)
            if func is F.scaled_dot_product_attention:
                return _FusedAttention.apply(*args)
        return func(*args, **kwargs)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        wanted = self.precision.autocast
        if not tensor.is_floating_point() or tensor.dtype == wanted:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and self.keeps_casts):
            return tensor.to(wanted)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(wanted)
        return self.casts[id(tensor)]

    def end_forward(self) -> None:
        self.casts.clear()
        self.keeps_casts = False


class _QuantisedLinear(torch.autograd.Function):
    """A layer whose weight is unpacked for the product, forwards and backwards, and kept packed in between."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        ctx.weight = weight
        return F.linear(inputs, torch.empty_like(weight, dtype=inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ torch.empty_like(ctx.weight, dtype=gradient.dtype), None, None


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        added = None if mask is None else mask.to(query.dtype)  # SDPA makes an addend of a boolean mask
        ctx.save_for_backward(query, key, value, output, sums, added)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """(B, H, T, D) to (B, T, H, D), as transformers' attention functions."""
    if attention_mask is not None:  # with a mask, SDPA takes as many heads of keys as of queries
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return F.scaled_dot_product_attention(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _no_mask(*sizes: object, **options: object) -> None:
    return None


AttentionInterface.register(COUNTED, _attention)
AttentionMaskInterface.register(COUNTED, _no_mask)


class _FusedHead(torch.autograd.Function):
    """TRL's: the tile, its weights in the type it computes in, gradients summed in float32.

    On a CPU the tile is worked on in float32 tensors of its size: 3 forwards, 7 and a boolean one backwards.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, on_cuda: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype, ctx.on_cuda = dtype, on_cuda
        _tile(hidden, weight, dtype, 0 if on_cuda else 3)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden, dtype=torch.float32)
        trains = ctx.needs_input_grad[1]
        of_weight = torch.empty_like(weight, dtype=torch.float32) if trains else None
        _tile(hidden, weight, ctx.dtype, 0 if ctx.on_cuda else 7.25)
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype) if trains else None, None, None


def _tile(hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, in_float32: float) -> None:
    tokens, width = min(len(hidden), TOKEN_CHUNK_SIZE), min(len(weight), VOCABULARY_CHUNK)
    made = [hidden.new_empty(tokens, VOCABULARY_CHUNK, dtype=dtype), hidden[:tokens].to(dtype)]
    made += [weight[:width].to(dtype), hidden.new_empty(int(in_float32 * tokens * width), dtype=torch.float32)]
    del made


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
    casting = _Casting(precision, {id(layer.weight) for layer in quantised})
    _checkpoint(model, checkpointed, casting)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(counter.add_gradient) for parameter in trained]
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    pictures = _pictures(processor, batch)
    with counter, casting:
        ids = torch.empty(batch.rows, batch.tokens, dtype=torch.long, device="meta")
        embeddings, vision = _embed(whole, ids, pictures, counter)
        mask = None
        if precision.dense_mask:
            mask = torch.empty(batch.rows, 1, batch.tokens, batch.tokens, dtype=torch.bool, device="meta")
        hidden = whole.model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=_positions(whole, ids), use_cache=False
        ).last_hidden_state
        del embeddings, mask
        language_model = counter.live - vision
        scored = hidden.reshape(-1, hidden.shape[-1])[: batch.rows * batch.scored]
        del hidden
        weight = whole.get_output_embeddings().weight
        loss = _FusedHead.apply(scored, weight, precision.autocast or scored.dtype, precision.on_cuda).sum()
        del scored
        casting.end_forward()
        torch.autograd.backward(loss)
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    transient = max(0, counter.peak - counter.gradients_at_peak - vision - language_model)
    return StepBytes(vision, language_model, transient, counter.peak, counter.gradients_at_peak)


def _checkpoint(model: PreTrainedModel | PeftModel, checkpointed: Callable[[str], bool], casting: _Casting) -> None:
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
