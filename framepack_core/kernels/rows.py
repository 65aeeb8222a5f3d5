"""Whole rows in registers: modulated norm, gated sum, and both in one pass over the residual.

A program takes a few rows of one sample, so that the vectors that steer them are read once. Letters: B batch,
L tokens, D width; strides of B and L are free, the last one is 1.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

MAX_WIDTH = 8192  # a row of it fills the registers of eight warps
ROWS = 4


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, rows: int = ROWS, warps: int | None = None
) -> Tensor:
    """LayerNorm of x [B, L, D], times 1 + scale [B, 1, D], plus shift."""
    batch, length, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with on_device_of(x):
        _modulated_norm_kernel[(triton.cdiv(length, rows), batch)](
            x,
            shift,
            scale,
            out,
            length,
            x.stride(0),
            x.stride(1),
            _sample_stride(shift, batch),
            _sample_stride(scale, batch),
            out.stride(0),
            eps,
            width,
            triton.next_power_of_2(width),
            rows,
            num_warps=warps or _warps(width),
        )
    return out


def gated_sum(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor,
    out: Tensor | None = None,
    rows: int = ROWS,
    warps: int | None = None,
) -> Tensor:
    """residual [B, L, D] plus branch [B, L, D] times gate [B, 1, D]; into out, whose rows lie side by side."""
    batch, length, width = residual.shape
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device) if out is None else out
    with on_device_of(residual):
        _gated_sum_kernel[(triton.cdiv(length, rows), batch)](
            residual,
            branch,
            gate,
            out,
            length,
            residual.stride(0),
            residual.stride(1),
            branch.stride(0),
            branch.stride(1),
            _sample_stride(gate, batch),
            out.stride(0),
            width,
            triton.next_power_of_2(width),
            rows,
            num_warps=warps or _warps(width),
        )
    return out


def gated_norm(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rows: int = ROWS,
    warps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """gated_sum and the modulated_norm of it, bit-equal to the two one after the other."""
    batch, length, width = residual.shape
    total = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    normed = torch.empty_like(total)
    with on_device_of(residual):
        _gated_norm_kernel[(triton.cdiv(length, rows), batch)](
            residual,
            branch,
            gate,
            shift,
            scale,
            total,
            normed,
            length,
            residual.stride(0),
            residual.stride(1),
            branch.stride(0),
            branch.stride(1),
            _sample_stride(gate, batch),
            _sample_stride(shift, batch),
            _sample_stride(scale, batch),
            total.stride(0),
            eps,
            width,
            triton.next_power_of_2(width),
            rows,
            num_warps=warps or _warps(width),
        )
    return total, normed


def _sample_stride(vector: Tensor, batch: int) -> int:
    return vector.expand(batch, -1, -1).stride(0)  # 0 when one vector steers all samples


def _warps(width: int) -> int:
    return 4 if width <= 4096 else 8


@triton.jit
def _normed(x, inside, shift, scale, eps, WIDTH: tl.constexpr):
    """LayerNorm of one row in float32, times scale (the 1 is in it), plus shift."""
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    return centred * tl.rsqrt(variance + eps) * scale + shift


@triton.jit(do_not_specialize=["length"])
def _modulated_norm_kernel(
    x,
    shift,
    scale,
    out,
    length,
    x_batch,
    x_row,
    shift_batch,
    scale_batch,
    out_batch,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    add = tl.load(shift + batch * shift_batch + column, mask=inside, other=0.0).to(tl.float32)
    times = 1.0 + tl.load(scale + batch * scale_batch + column, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(ROWS):
        row = (first + i).to(tl.int64)
        here = inside & (row < length)
        value = tl.load(x + batch * x_batch + row * x_row + column, mask=here, other=0.0).to(tl.float32)
        value = _normed(value, inside, add, times, eps, WIDTH)
        tl.store(out + batch * out_batch + row * WIDTH + column, value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["length"])
def _gated_sum_kernel(
    residual,
    branch,
    gate,
    out,
    length,
    residual_batch,
    residual_row,
    branch_batch,
    branch_row,
    gate_batch,
    out_batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weight = tl.load(gate + batch * gate_batch + column, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(ROWS):
        row = (first + i).to(tl.int64)
        here = inside & (row < length)
        kept = tl.load(residual + batch * residual_batch + row * residual_row + column, mask=here, other=0.0)
        added = tl.load(branch + batch * branch_batch + row * branch_row + column, mask=here, other=0.0)
        total = kept.to(tl.float32) + added.to(tl.float32) * weight
        tl.store(out + batch * out_batch + row * WIDTH + column, total.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["length"])
def _gated_norm_kernel(
    residual,
    branch,
    gate,
    shift,
    scale,
    total,
    normed,
    length,
    residual_batch,
    residual_row,
    branch_batch,
    branch_row,
    gate_batch,
    shift_batch,
    scale_batch,
    out_batch,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weight = tl.load(gate + batch * gate_batch + column, mask=inside, other=0.0).to(tl.float32)
    add = tl.load(shift + batch * shift_batch + column, mask=inside, other=0.0).to(tl.float32)
    times = 1.0 + tl.load(scale + batch * scale_batch + column, mask=inside, other=0.0).to(tl.float32)
    for i in tl.static_range(ROWS):
        row = (first + i).to(tl.int64)
        here = inside & (row < length)
        kept = tl.load(residual + batch * residual_batch + row * residual_row + column, mask=here, other=0.0)
        added = tl.load(branch + batch * branch_batch + row * branch_row + column, mask=here, other=0.0)
        # the norm is that of the rounded sum, which is what a later block reads
        rounded = (kept.to(tl.float32) + added.to(tl.float32) * weight).to(total.dtype.element_ty)
        place = batch * out_batch + row * WIDTH + column
        tl.store(total + place, rounded, mask=here)
        value = _normed(rounded.to(tl.float32), inside, add, times, eps, WIDTH)
        tl.store(normed + place, value.to(normed.dtype.element_ty), mask=here)
