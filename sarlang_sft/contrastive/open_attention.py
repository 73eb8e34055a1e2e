"""Attention whose projections are layers of their own, so that each can have an adapter; and back again.

PyTorch's `MultiheadAttention` holds query, key and value as one bare matrix, and never calls its output layer. PEFT's
adapters for it add themselves to the weights before each call and subtract themselves afterwards, which leaves a
rounding error in the frozen weights at every step, and take no dropout.
"""

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class OpenAttention(nn.Module):
    """Computes what a `MultiheadAttention` of equal widths computes; inputs are (N, L, D)."""

    def __init__(self, closed: nn.MultiheadAttention) -> None:
        super().__init__()
        width = closed.embed_dim
        self.num_heads = closed.num_heads
        for name, weight, bias in zip(
            PROJECTIONS, closed.in_proj_weight.chunk(3), closed.in_proj_bias.chunk(3), strict=True
        ):
            layer = nn.Linear(width, width, device=weight.device, dtype=weight.dtype)
            layer.load_state_dict({"weight": weight, "bias": bias})
            setattr(self, name, layer)
        self.out_proj = nn.Linear(width, width, device=weight.device, dtype=weight.dtype)
        self.out_proj.load_state_dict(closed.out_proj.state_dict())

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool,
        attn_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, None]:
        """As open_clip's blocks call it.

        Args:
            need_weights: False; weights are not computed.
            attn_mask: Added to the logits, (L, S) or (N heads, L, S).
        """
        q, k, v = (
            layer(of).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, of in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        attended = scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def open_attention(model: nn.Module) -> None:
    """Open the attention of all transformer blocks of an open_clip model."""
    for block in _blocks(model):
        if isinstance(block.attn, nn.MultiheadAttention):
            block.attn = OpenAttention(block.attn)


def close_attention(model: nn.Module) -> None:
    """Make it what open_clip builds and saves, once adapters are merged."""
    for block in _blocks(model):
        if isinstance(block.attn, OpenAttention):
            block.attn = _close(block.attn)


def _close(opened: OpenAttention) -> nn.MultiheadAttention:
    weight = opened.out_proj.weight
    closed = nn.MultiheadAttention(
        weight.shape[0], opened.num_heads, batch_first=True, device=weight.device, dtype=weight.dtype
    )
    layers = [opened.get_submodule(name) for name in PROJECTIONS]
    closed.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.weight for layer in layers]),
            "in_proj_bias": torch.cat([layer.bias for layer in layers]),
            "out_proj.weight": weight,
            "out_proj.bias": opened.out_proj.bias,
        }
    )
    return closed.train(opened.training)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, ResidualAttentionBlock)]
