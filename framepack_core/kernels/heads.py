"""RMSNorm and rotary positions of queries or keys, in place in the buffer that attention reads."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

MAX_TILE = 16384  # elements of one token, padded to powers of two


def tile_size(heads: int, head_dim: int) -> int:
    """Elements of the padded tile that one program holds."""
    return int(triton.next_power_of_2(heads) * triton.next_power_of_2(head_dim))


def normed_rotation(
    x: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
    out: Tensor | None = None,
    warps: int = 8,
) -> Tensor:
    """RMSNorm of x [B, L, H, d] over d, then a turn of the pairs of the first L' tokens, into out (or x itself).

    cos and sin are float32 [L', d/2] with last stride 1; tokens beyond L', all of them when both are None, are
    only normed. Strides of x and out are free, except the last, which is 1.
    """
    batch, length, heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    turned = 0 if cos is None else cos.shape[0]
    with on_device_of(x):
        _normed_rotation_kernel[(length, batch)](
            x,
            weight,
            x if cos is None else cos,  # with turned 0 nothing is read from it
            x if sin is None else sin,
            out,
            turned,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            out.stride(0),
            out.stride(1),
            out.stride(2),
            0 if cos is None else cos.stride(0),
            0 if sin is None else sin.stride(0),
            eps,
            heads,
            dim,
            triton.next_power_of_2(heads),
            triton.next_power_of_2(dim // 2),
            num_warps=warps,
        )
    return out


@triton.jit(do_not_specialize=["turned"])
def _normed_rotation_kernel(
    x,
    weight,
    cos,
    sin,
    out,
    turned,
    x_batch,
    x_row,
    x_head,
    out_batch,
    out_row,
    out_head,
    cos_row,
    sin_row,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    channel = tl.arange(0, 2 * PAIR_BLOCK)
    inside = (head < HEADS) & (channel[None, :] < DIM)
    place = batch * x_batch + row * x_row + head * x_head + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)  # [heads, d]
    gain = tl.load(weight + channel, mask=channel < DIM, other=0.0).to(tl.float32)
    mean_square = tl.sum(value * value, axis=1) / DIM
    value = value * tl.rsqrt(mean_square + eps)[:, None] * gain[None, :]

    pair = tl.arange(0, PAIR_BLOCK)
    known = (pair < DIM // 2) & (row < turned)
    c = tl.load(cos + row * cos_row + pair, mask=known, other=1.0).to(tl.float32)[None, :]
    s = tl.load(sin + row * sin_row + pair, mask=known, other=0.0).to(tl.float32)[None, :]
    real, imaginary = tl.split(tl.reshape(value, (HEAD_BLOCK, PAIR_BLOCK, 2)))
    value = tl.join(real * c - imaginary * s, imaginary * c + real * s)
    value = tl.reshape(value, (HEAD_BLOCK, 2 * PAIR_BLOCK))
    place = batch * out_batch + row * out_row + head * out_head + channel[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
