"""Everything that turns inputs into tokens or into the vector that steers the blocks.

Source: FP hunyuan_video_packed.py. Letters: B batch, C channels, T H W latent frame, height and width,
L tokens, D width of the streams.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import FeedForward, SelfAttention
from .config import FramePackConfig
from .rope import pad_to_multiple

FREQUENCIES = 256


def sinusoid(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 256], cosines first, computed in float32 (diffusers Timesteps, flip_sin_to_cos)."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=value.device) / half)
    angle = value.float().unsqueeze(-1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)


class VectorEmbedder(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, in_dim: int, width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.linear_1 = operations.Linear(in_dim, width, **factory)
        self.linear_2 = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbedder(nn.Module):
    """The vector of the blocks: (timestep + guidance) + pooled prompt, [B, D]. The refiner's has no guidance."""

    def __init__(self, text_dim: int, width: int, has_guidance: bool, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.timestep_embedder = VectorEmbedder(FREQUENCIES, width, operations, **factory)
        if has_guidance:
            self.guidance_embedder = VectorEmbedder(FREQUENCIES, width, operations, **factory)
        self.text_embedder = VectorEmbedder(text_dim, width, operations, **factory)

    def forward(self, timestep: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        steering = self.timestep_embedder(sinusoid(timestep, text.dtype))
        if guidance is not None:
            steering = steering + self.guidance_embedder(sinusoid(guidance, text.dtype))
        return steering + self.text_embedder(text)


class PatchEmbedder(nn.Module):
    """One patch of 1x2x2 latents to a token."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = _patch_conv(config, (1, 2, 2), operations, **factory)

    def forward(self, latents: Tensor) -> Tensor:
        return tokens_of(self.proj, latents)


class HistoryEmbedder(nn.Module):
    """History at three rates, with weights of its own: patches of 1x2x2, 2x4x4 and 4x8x8 latents."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = _patch_conv(config, (1, 2, 2), operations, **factory)
        self.proj_2x = _patch_conv(config, (2, 4, 4), operations, **factory)
        self.proj_4x = _patch_conv(config, (4, 8, 8), operations, **factory)

    def forward(self, latents: Tensor, rate: int) -> Tensor:
        proj = {1: self.proj, 2: self.proj_2x, 4: self.proj_4x}[rate]
        return tokens_of(proj, latents)


def tokens_of(conv: nn.Module, latents: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, L, D], frame-major; incomplete patches are filled by repeating the last latent."""
    return conv(pad_to_multiple(latents, conv.kernel_size)).flatten(2).transpose(1, 2)  # pyright: ignore


def _patch_conv(config: FramePackConfig, size: tuple[int, int, int], operations: Any, **factory: Any) -> nn.Module:
    return operations.Conv3d(config.in_channels, config.width, kernel_size=size, stride=size, **factory)


class ImageProjection(nn.Module):
    """Vision features [B, N, E] -> tokens [B, N, D]."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.up = operations.Linear(config.image_proj_dim, config.width * 3, **factory)
        self.down = operations.Linear(config.width * 3, config.width, **factory)

    def forward(self, features: Tensor) -> Tensor:
        return self.down(F.silu(self.up(features)))


class TextRefiner(nn.Module):
    """LLM features [B, L, E] -> tokens [B, L, D], steered by the timestep and the mean feature."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.time_text_embed = TimeTextEmbedder(config.text_embed_dim, width, False, operations, **factory)
        self.proj_in = operations.Linear(config.text_embed_dim, width, **factory)
        self.token_refiner = _RefinerStack(config, operations, **factory)

    def forward(self, text: Tensor, timestep: Tensor, lengths: tuple[int, ...] | None, attention: Any) -> Tensor:
        """lengths: valid tokens of each sample, None when all are valid."""
        steering = self.time_text_embed(timestep, _masked_mean(text, lengths))
        x = self.proj_in(text)
        for block in self.token_refiner.refiner_blocks:
            x = block(x, steering, lengths, attention)
        return x


class _RefinerStack(nn.Module):
    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        count = config.num_refiner_layers
        self.refiner_blocks = nn.ModuleList(_RefinerBlock(config, operations, **factory) for _ in range(count))


class _RefinerBlock(nn.Module):
    """Pre-norm attention and MLP whose outputs are gated by the steering vector; no shift, no scale, no RoPE."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.norm1 = operations.LayerNorm(width, eps=1e-6, **factory)
        self.attn = SelfAttention(config, operations, has_out=True, has_norm=False, **factory)
        self.norm2 = operations.LayerNorm(width, eps=1e-6, **factory)
        self.ff = FeedForward(width, config.mlp_dim, F.silu, operations, **factory)
        self.norm_out = _Gates(width, operations, **factory)

    def forward(self, x: Tensor, steering: Tensor, lengths: tuple[int, ...] | None, attention: Any) -> Tensor:
        attention_gate, mlp_gate = self.norm_out(steering)
        x = x + self.attn(self.norm1(x), lengths, attention) * attention_gate
        return x + self.ff(self.norm2(x)) * mlp_gate


class _Gates(nn.Module):
    def __init__(self, width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.linear = operations.Linear(width, 2 * width, **factory)

    def forward(self, steering: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(steering)).unsqueeze(1).chunk(2, dim=-1)


def _masked_mean(text: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    """Mean over the valid tokens in float32, [B, L, E] -> [B, E]."""
    if lengths is None:
        return text.float().mean(dim=1).to(text.dtype)
    means = [sample[:length].float().mean(dim=0) for sample, length in zip(text, lengths, strict=True)]
    return torch.stack(means).to(text.dtype)
