"""The decoder's convolution over padded channels-last frames: one function, and the maths of it in plain torch."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .elementwise import fuses


class Taps(NamedTuple):
    """Weights of one convolution."""

    weight: Tensor  # [KT, KH, KW, C, O], contiguous
    bias: Tensor | None  # [O]

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "Taps":
        """From torch's order [O, C, KT, KH, KW]."""
        return cls(weight.permute(2, 3, 4, 1, 0).contiguous(), bias)


def convolve(frames: Tensor, taps: Taps, out: Tensor, start: tuple[int, int] = (0, 0), add: bool = False) -> Tensor:
    """Convolution of padded frames [F + KT - 1, HP, WP, C] into out [F, H, W, O], which may be strided.

    start: row and column of frames where the first output's taps begin. add: out already holds what is added.
    """
    if not fuses(frames):
        return eager_convolve(frames, taps, out, start, add)
    from ..kernels import convolution

    weight = taps.weight
    return convolution.convolve(
        frames,
        weight.view(-1, weight.shape[-1]),
        taps.bias,
        out,
        (weight.shape[0], weight.shape[1], weight.shape[2]),
        start,
        out if add else None,
    )


def eager_convolve(
    frames: Tensor, taps: Taps, out: Tensor, start: tuple[int, int] = (0, 0), add: bool = False
) -> Tensor:
    (high, wide), (row, column) = taps.weight.shape[1:3], start
    frames = frames[:, row : row + out.shape[1] + high - 1, column : column + out.shape[2] + wide - 1]
    result = F.conv3d(frames.permute(3, 0, 1, 2)[None], taps.weight.permute(4, 3, 0, 1, 2), taps.bias)
    result = result[0].permute(1, 2, 3, 0)
    return out.add_(result) if add else out.copy_(result)
