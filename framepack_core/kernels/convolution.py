"""Causal 3D convolution of channels-last frames as one matrix product whose left side is never written out.

Frames lie padded in memory, [F + KT - 1, H + 2, W + 2, C]: the carried ones first, the border already there. Seen as
rows of C channels, the inputs of a tap are then the rows of the outputs, all moved by the same distance. So every tap
is a plain product of a block of rows with that tap's weights, and the few rows of the border that are computed with
the others are not stored (0.6 % at 640x640).
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4
    TensorDescriptor = None


class Launch(NamedTuple):
    """Shape of a program: rows, output channels and input channels of its blocks, warps, stages of its pipeline."""

    rows: int = 128
    columns: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    descriptors: bool = False  # loads by the tensor memory accelerator, Hopper and later


NARROW = Launch(128, 64, 64, 4, 3)  # few channels in or out
COMMON = Launch(128, 128, 32, 4, 4)  # 64 KB of shared memory, which every card since Ampere has
HOPPER = (Launch(256, 128, 64, 8, 4, True), Launch(128, 256, 64, 8, 3, True))  # up to 128 channels out, and more


def launch_for(frames: Tensor, columns: int) -> Launch:
    """What was fastest for frames [.., C] and so many output channels, scripts/check_convolutions.py on an H200."""
    channels = frames.shape[-1]
    if columns < 64 or channels < 64:
        return NARROW
    if TensorDescriptor is None or not frames.is_cuda or torch.version.hip:
        return COMMON
    if torch.cuda.get_device_capability(frames.device)[0] not in (9, 10):
        return COMMON
    launch = HOPPER[columns > 128]
    fits = channels % launch.depth == 0 and columns % 8 == 0 and frames.numel() // channels >= launch.rows
    return launch if fits else COMMON


def convolve(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    taps: tuple[int, int, int],
    start: tuple[int, int] = (0, 0),
    residual: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """Convolution of frames [F + KT - 1, HP, WP, C] with weight [KT * KH * KW * C, O] into out [F, H, W, O].

    frames is contiguous; of out (and residual, which is added, of the same shape) the last stride is 1, the others are
    free. start: row and column of frames where the first output's taps begin.

    The products are summed in float32 and rounded once. To norm frames while they are read takes 2 to 3 times as long,
    because the products then cannot come from shared memory.
    """
    count, height, width, columns = out.shape
    launch = launch or launch_for(frames, columns)
    _, rows_high, rows_wide, channels = frames.shape
    depth = min(launch.depth, int(triton.next_power_of_2(channels)))
    block = min(launch.columns, max(16, int(triton.next_power_of_2(columns))))
    last = ((count - 1) * rows_high + height - 1) * rows_wide + width  # rows from the first output to the last
    grid = (triton.cdiv(last, launch.rows) * triton.cdiv(columns, block),)
    given = residual if residual is not None else out
    source, matrix = frames, weight
    descriptor = TensorDescriptor if launch.descriptors else None
    if descriptor is not None:
        source = descriptor.from_tensor(frames.view(-1, channels), [launch.rows, depth])
        matrix = descriptor.from_tensor(weight, [depth, block])
    with on_device_of(frames):
        _convolve_kernel[grid](
            source,
            matrix,
            bias if bias is not None else weight,
            given,
            out,
            start[0] * rows_wide + start[1],
            last,
            rows_high * rows_wide,
            rows_wide,
            height,
            width,
            columns,
            out.stride(0),
            out.stride(1),
            out.stride(2),
            given.stride(0),
            given.stride(1),
            given.stride(2),
            CHANNELS=channels,
            KT=taps[0],
            KH=taps[1],
            KW=taps[2],
            BIAS=bias is not None,
            RESIDUAL=residual is not None,
            DESCRIPTORS=descriptor is not None,
            ROWS=launch.rows,
            COLUMNS=block,
            DEPTH=depth,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return out


@triton.jit(do_not_specialize=["start", "last"])
def _convolve_kernel(
    frames,
    weight,
    bias,
    residual,
    out,
    start,
    last,
    frame_rows,
    rows_wide,
    height,
    width,
    columns,
    out_frame,
    out_row,
    out_column,
    residual_frame,
    residual_row,
    residual_column,
    CHANNELS: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    blocks = tl.cdiv(columns, COLUMNS)
    first_row = (tl.program_id(0) // blocks) * ROWS
    first_column = (tl.program_id(0) % blocks) * COLUMNS
    place = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    steps: tl.constexpr = (CHANNELS + DEPTH - 1) // DEPTH  # of one tap
    read = (start + tl.minimum(place, last - 1)).to(tl.int64) * CHANNELS
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(KT * KH * KW * steps):
        tap = step // steps
        channel = (step % steps) * DEPTH
        moved = (tap // (KH * KW)) * frame_rows + (tap // KW % KH) * rows_wide + tap % KW
        if DESCRIPTORS:
            left = frames.load([start + first_row + moved, channel])
            right = weight.load([tap * CHANNELS + channel, first_column])
        else:
            inside = channel + depth < CHANNELS
            from_row = frames + moved.to(tl.int64) * CHANNELS + channel
            left = tl.load(from_row + read[:, None] + depth[None, :], mask=inside[None, :], other=0.0)
            line = tap * CHANNELS + channel + depth
            right = tl.load(
                weight + line[:, None] * columns + column[None, :],
                mask=inside[:, None] & (column < columns)[None, :],
                other=0.0,
            )
        total = tl.dot(left, right, total, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    frame = (place // frame_rows).to(tl.int64)
    row = (place % frame_rows // rows_wide).to(tl.int64)
    across = (place % rows_wide).to(tl.int64)
    stored = ((place < last) & (row < height) & (across < width))[:, None] & (column < columns)[None, :]
    if RESIDUAL:
        at = frame * residual_frame + row * residual_row + across * residual_column
        total += tl.load(residual + at[:, None] + column[None, :], mask=stored, other=0.0).to(tl.float32)
    at = frame * out_frame + row * out_row + across * out_column
    tl.store(out + at[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=stored)
