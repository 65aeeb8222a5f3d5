"""GELU in its tanh form, written where the next projection reads it."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

BLOCK = 4096


def gelu(x: Tensor, out: Tensor | None = None, warps: int = 8) -> Tensor:
    """GELU of x [B, L, D] into out, which may be x itself or a slice of a wider buffer; last strides 1."""
    batch, length, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    block = min(triton.next_power_of_2(width), BLOCK)
    pieces = triton.cdiv(width, block)
    with on_device_of(x):
        _gelu_kernel[(length * pieces, batch)](
            x, out, x.stride(0), x.stride(1), out.stride(0), out.stride(1), width, pieces, block, num_warps=warps
        )
    return out


@triton.jit
def _gelu_kernel(
    x,
    out,
    x_batch,
    x_row,
    out_batch,
    out_row,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) // PIECES).to(tl.int64)
    column = (tl.program_id(0) % PIECES) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + batch * x_batch + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh u) is the logistic function of 2 u, which loses no digits where tanh is near -1
    twice = 2.0 * 0.7978845608028654 * (value + 0.044715 * value * value * value)
    value = value / (1.0 + tl.exp(-twice))
    tl.store(out + batch * out_batch + row * out_row + column, value.to(out.dtype.element_ty), mask=inside)
