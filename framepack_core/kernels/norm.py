"""Group norm and SiLU of channels-last frames in two passes: statistics, then one read and one write."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

ROWS = 256  # pixels a program takes; their sums go to memory of their own, so results do not depend on timing

TILE = 4096  # values that a program holds at a time


def channel_sums(x: Tensor, rows: int = ROWS, warps: int = 4) -> tuple[Tensor, Tensor]:
    """x [N, C] contiguous -> sums and sums of squares [C] each, float64.

    Sums of a program are float32 and of few values; those of all programs are added in float64.
    """
    count, channels = x.shape
    block = int(triton.next_power_of_2(channels))
    step = max(1, min(TILE // block, rows))  # rows at a time
    steps = rows // step
    programs = -(-count // (steps * step))
    sums = torch.empty(2, programs, channels, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _sums_kernel[(programs,)](
            x, sums, count, programs, channels, STEPS=steps, STEP=step, BLOCK=block, num_warps=warps
        )
    total = sums.sum(1, dtype=torch.float64)
    return total[0], total[1]


def padded(x: Tensor, scale_shift: tuple[Tensor, Tensor] | None, out: Tensor, rows: int = 8) -> Tensor:
    """silu(x * scale + shift), or x, of frames [F, H, W, C] into out [F, H + 2, W + 2, C]; both contiguous.

    The border of out repeats the outermost pixels. scale, shift: float32 [C].
    """
    count, height, width, channels = x.shape
    total = count * (height + 2) * (width + 2)
    scale, shift = scale_shift if scale_shift is not None else (x, x)  # nothing is read from them then
    with on_device_of(x):
        _padded_kernel[(triton.cdiv(total, rows),)](
            x,
            scale,
            shift,
            out,
            total,
            height,
            width,
            channels,
            ROWS=rows,
            BLOCK=triton.next_power_of_2(channels),
            NORM=scale_shift is not None,
            num_warps=4,
        )
    return out


@triton.jit(do_not_specialize=["count", "programs"])
def _sums_kernel(
    x, sums, count, programs, CHANNELS: tl.constexpr, STEPS: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((STEP, BLOCK), dtype=tl.float32)  # added up over rows once, at the end
    squares = tl.zeros((STEP, BLOCK), dtype=tl.float32)
    for number in range(STEPS):
        row = (program * STEPS + number) * STEP + tl.arange(0, STEP)
        inside = (row < count)[:, None] & (column < CHANNELS)[None, :]
        value = tl.load(x + row.to(tl.int64)[:, None] * CHANNELS + column[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        total += value
        squares += value * value
    tl.store(sums + program * CHANNELS + column, tl.sum(total, axis=0), mask=column < CHANNELS)
    tl.store(sums + (programs + program) * CHANNELS + column, tl.sum(squares, axis=0), mask=column < CHANNELS)


@triton.jit(do_not_specialize=["total"])
def _padded_kernel(
    x,
    scale,
    shift,
    out,
    total,
    height,
    width,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    frame = (place // ((height + 2) * (width + 2))).to(tl.int64)
    row = place // (width + 2) % (height + 2)
    across = place % (width + 2)
    row = tl.minimum(tl.maximum(row - 1, 0), height - 1)
    across = tl.minimum(tl.maximum(across - 1, 0), width - 1)
    inside = (place < total)[:, None] & (column < CHANNELS)[None, :]
    at = ((frame * height + row) * width + across) * CHANNELS
    value = tl.load(x + at[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        times = tl.load(scale + column, mask=column < CHANNELS, other=0.0)
        plus = tl.load(shift + column, mask=column < CHANNELS, other=0.0)
        value = value * times[None, :] + plus[None, :]
        value = value / (1.0 + tl.exp(-value))
    at = place.to(tl.int64) * CHANNELS
    tl.store(out + at[:, None] + column[None, :], value.to(out.dtype.element_ty), mask=inside)
