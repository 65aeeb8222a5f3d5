"""Layers for use without a host: torch's own, except that a Linear computes in the dtype of its input.

The host brings its own set (comfy.ops), with the same names, which also streams and dequantises weights.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """Linear whose weights follow the dtype of the input, as the fp32 output projection needs."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


Conv3d = nn.Conv3d
LayerNorm = nn.LayerNorm
RMSNorm = torch.nn.RMSNorm


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,  # noqa: ARG001
    transformer_options: dict | None = None,  # noqa: ARG001
) -> Tensor:
    """Full attention, q k v [B, heads, L, D] -> [B, L, heads * D]; heads and options are for hosts."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def weight_for(norm: nn.Module, x: Tensor) -> Tensor:
    """The weight of a norm layer, on the device and in the dtype of x."""
    weight: Tensor = norm.weight  # pyright: ignore[reportAssignmentType]
    return weight.to(x)


def in_order(blocks: Iterable[nn.Module], x: Tensor, options: dict) -> Iterator[nn.Module]:  # noqa: ARG001
    """The blocks one after the other; a host may have the weights of the next one on their way to the device of x."""
    return iter(blocks)
