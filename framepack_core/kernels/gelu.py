"""GELU in its tanh form, alone or written beside what the next projection reads with it."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

BLOCK = 4096


def gelu(x: Tensor, warps: int = 8) -> Tensor:
    """GELU of x [B, L, D], last stride 1."""
    return joined_gelu(x[..., :0], x, warps)


def joined_gelu(left: Tensor, x: Tensor, warps: int = 8) -> Tensor:
    """left [B, L, C] as it is and GELU of x [B, L, D] after it, [B, L, C + D]; last strides 1."""
    batch, length, width = x.shape
    beside = left.shape[2]
    out = torch.empty(batch, length, beside + width, dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(width), BLOCK)
    copies, pieces = triton.cdiv(beside, block), triton.cdiv(width, block)
    with on_device_of(x):
        _joined_gelu_kernel[(length * (copies + pieces), batch)](
            left, x, out, *left.stride()[:2], *x.stride()[:2], *out.stride()[:2], beside, width, copies, pieces, block,
            num_warps=warps,
        )  # fmt: skip
    return out


@triton.jit
def _joined_gelu_kernel(
    left,
    x,
    out,
    left_batch,
    left_row,
    x_batch,
    x_row,
    out_batch,
    out_row,
    BESIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    COPIES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each row, COPIES programs copy left and PIECES programs compute."""
    batch = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) // (COPIES + PIECES)).to(tl.int64)
    number = tl.program_id(0) % (COPIES + PIECES)
    out += batch * out_batch + row * out_row
    if number < COPIES:
        column = number * BLOCK + tl.arange(0, BLOCK)
        inside = column < BESIDE
        copied = tl.load(left + batch * left_batch + row * left_row + column, mask=inside, other=0.0)
        tl.store(out + column, copied, mask=inside)
    else:
        column = (number - COPIES) * BLOCK + tl.arange(0, BLOCK)
        inside = column < WIDTH
        value = tl.load(x + batch * x_batch + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
        # 0.5 (1 + tanh u) is the logistic function of 2 u, which loses no digits where tanh is near -1
        twice = 2.0 * 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value / (1.0 + tl.exp(-twice))
        tl.store(out + BESIDE + column, value.to(out.dtype.element_ty), mask=inside)
