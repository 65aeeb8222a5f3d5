"""Quantisation to 8-bit float with one scale per head: one read for the largest magnitudes, one to convert."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

TOKENS = 64  # of one head, in one program


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, L, d] with last stride 1 -> values [B, H, L, d] float8_e4m3fn, a view of [B, L, H, d]; scales [B, H]."""
    batch, heads, length, dim = x.shape
    blocks = -(-length // TOKENS)
    largest = torch.empty(batch, heads, blocks, dtype=torch.float32, device=x.device)
    values = torch.empty(batch, length, heads, dim, dtype=torch.float8_e4m3fn, device=x.device)
    sizes = *x.stride()[:3], heads, length
    tile = {"DIM": dim, "BLOCK": triton.next_power_of_2(dim), "TOKENS": TOKENS}
    with on_device_of(x):
        _largest_of_block[(blocks, heads, batch)](x, largest, *sizes, **tile)
        largest = largest.amax(dim=-1).clamp_min_(1e-12)  # [B, H]
        _quantise_block[(blocks, heads, batch)](x, values, largest, *sizes, **tile)
    return values.transpose(1, 2), largest.div_(448.0)


@triton.jit(do_not_specialize=["length"])
def _largest_of_block(
    x, largest, x_batch, x_head, x_row, heads, length, DIM: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr
):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = block * TOKENS + tl.arange(0, TOKENS)[:, None].to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < length) & (channel < DIM)
    given = tl.load(x + batch * x_batch + head * x_head + row * x_row + channel, mask=inside, other=0.0)
    peak = tl.max(tl.max(tl.abs(given.to(tl.float32)), axis=1), axis=0)
    tl.store(largest + (batch * heads + head) * tl.num_programs(0) + block, peak)


@triton.jit(do_not_specialize=["length"])
def _quantise_block(
    x,
    values,
    largest,
    x_batch,
    x_head,
    x_row,
    heads,
    length,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = block * TOKENS + tl.arange(0, TOKENS)[:, None].to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < length) & (channel < DIM)
    given = tl.load(x + batch * x_batch + head * x_head + row * x_row + channel, mask=inside, other=0.0)
    scaled = given.to(tl.float32) * (448.0 / tl.load(largest + batch * heads + head))
    place = ((batch * length + row) * heads + head) * DIM + channel
    tl.store(values + place, scaled.to(tl.float8e4nv), mask=inside)
