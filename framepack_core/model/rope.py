"""Rotary positions: time from frame indices, height and width from the patch grid.

Source: FP hunyuan_video_packed.py HunyuanVideoRotaryPosEmbed and center_down_sample_3d. Letters: T H W the
patch grid, D the head dimension.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import FramePackConfig


class Rotation(NamedTuple):
    """Cosine and sine per token and channel pair, float32."""

    cos: Tensor  # [1, 1, L, D/2]
    sin: Tensor


def rotation_grid(config: FramePackConfig, indices: tuple[int, ...], height: int, width: int, device) -> Tensor:
    """Cosines and sines [2, D/2, T, height, width] of a grid of patches, float32."""
    positions = (
        # made here and sent over: made there, it would wait for all work that the device still has
        torch.tensor(indices, dtype=torch.float32).to(device, non_blocking=True),
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
    )
    grid = torch.meshgrid(*positions, indexing="ij")
    angles = []
    for axis_dim, place in zip(config.rope_axes_dim, grid, strict=True):
        exponents = torch.arange(0, axis_dim, 2, dtype=torch.float32, device=device) / axis_dim
        inverse = 1.0 / (config.rope_theta**exponents)  # [axis_dim/2]
        angles.append(inverse.view(-1, 1, 1, 1) * place)  # [axis_dim/2, T, H, W]
    angle = torch.cat(angles)
    return torch.stack([angle.cos(), angle.sin()])


def pooled_grid(grid: Tensor, rate: int) -> Tensor:
    """Averages of cos and sin over cells of rate^3 patches, the grid first repeated at its ends to whole cells.

    The averages are shorter than unit length and stay so: the model was trained with them.
    """
    return F.avg_pool3d(pad_to_multiple(grid, (rate, rate, rate)), rate)


def pad_to_multiple(x: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """Repeat the last entry of the three last axes until each is a multiple of its size."""
    padding = [-x.shape[axis] % sizes[axis] for axis in (-1, -2, -3)]
    if not any(padding):
        return x
    return F.pad(x, (0, padding[0], 0, padding[1], 0, padding[2]), mode="replicate")


def join_rotations(grids: list[Tensor]) -> Rotation:
    """One table for groups of tokens packed one after the other, each frame-major, then rows."""
    flat = torch.cat([grid.flatten(2) for grid in grids], dim=2)  # [2, D/2, L]
    cos, sin = flat.transpose(1, 2).unsqueeze(1).unsqueeze(1).contiguous()  # 2 x [1, 1, L, D/2]
    return Rotation(cos, sin)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channel pairs of the first L tokens, x [B, heads, >= L, D], computed in float32."""
    length = rotation.cos.shape[2]
    pairs = x[:, :, :length].float().unflatten(-1, (-1, 2))  # [B, heads, L, D/2, 2]
    real, imaginary = pairs.unbind(-1)
    turned = torch.stack(
        [real * rotation.cos - imaginary * rotation.sin, imaginary * rotation.cos + real * rotation.sin], dim=-1
    )
    turned = turned.flatten(-2).to(x.dtype)
    return turned if length == x.shape[2] else torch.cat([turned, x[:, :, length:]], dim=2)
