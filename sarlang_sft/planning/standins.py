"""What has no version on the meta device, by the bytes that it keeps and makes.

Fused attention keeps queries, keys, values, the output and one float32 per query and head, never the matrix
(FlashAttention-2, arXiv 2307.08691); TRL's fused head makes tiles of logits, never all of them; a layer of 4 bits
unpacks its weight while it computes; autocast keeps what it casts of the weights until the forward pass ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

COUNTED = "counted"
COUNTED_WINDOWS = "flash_counted"  # by whose name the towers take all windows at once, as FlashAttention does
VOCABULARY_CHUNK = 32768  # width of a tile of TRL's fused head
MATRIX_PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.bmm, torch.Tensor.__matmul__, F.conv2d, F.conv3d)
MATRIX_PRODUCTS += (F.scaled_dot_product_attention,)


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


class Casting(TorchFunctionMode):
    """Autocast, which the meta device has not, and quantised layers; other tensors follow to the meta device."""

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
        """Forget the casts, as autocast does."""
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
    if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
        attention_mask = None
    if attention_mask is not None:  # with a mask, SDPA takes as many heads of keys as of queries
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return F.scaled_dot_product_attention(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _no_mask(*sizes: object, **options: object) -> None:
    return None


for _name in (COUNTED, COUNTED_WINDOWS):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _no_mask)


class FusedHead(torch.autograd.Function):
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
