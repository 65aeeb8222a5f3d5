"""What the decoder does between its convolutions: statistics, and norm with SiLU into the next one's padded input.

As in model/elementwise.py, each function has its maths in plain torch under its eager_ name, and one kernel where
Triton runs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.device import convolution_runs_on


def fuses(x: Tensor) -> bool:
    """Whether kernels take the place of plain torch for a tensor like this."""
    return x.is_cuda and convolution_runs_on(x.device, x.dtype)


def channel_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """[F, H, W, C] -> sums and sums of squares of each channel, float64 [C] each."""
    if not fuses(x):
        return eager_channel_sums(x)
    from ..kernels import norm

    return norm.channel_sums(x.view(-1, x.shape[-1]))


def eager_channel_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    sums, squares = (torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device) for _ in range(2))
    for frame in x.double().flatten(1, 2):
        sums += frame.sum(0)
        squares += frame.square().sum(0)
    return sums, squares


def padded(x: Tensor, scale_shift: tuple[Tensor, Tensor] | None, out: Tensor) -> Tensor:
    """silu(x * scale + shift), or x, of [F, H, W, C] with its border repeated once, into out [F, H + 2, W + 2, C].

    scale and shift are float32 [C].
    """
    if not fuses(x):
        return eager_padded(x, scale_shift, out)
    from ..kernels import norm

    return norm.padded(x, scale_shift, out)


def eager_padded(x: Tensor, scale_shift: tuple[Tensor, Tensor] | None, out: Tensor) -> Tensor:
    if scale_shift is not None:
        scale, shift = (vector.to(x.dtype) if x.dtype == torch.float64 else vector for vector in scale_shift)
        x = F.silu(torch.addcmul(shift, x.to(scale.dtype), scale), inplace=True).to(x.dtype)
    out[:, 1:-1, 1:-1] = x
    out[:, 0, 1:-1], out[:, -1, 1:-1] = x[:, 0], x[:, -1]
    out[:, :, 0], out[:, :, -1] = out[:, :, 1], out[:, :, -2]
    return out
