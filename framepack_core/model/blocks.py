"""Transformer blocks. Parameter names are the checkpoint's (diffusers names).

Source: FP hunyuan_video_packed.py. Letters: B batch, L tokens, D width; "visual" are the packed history and
the section, "text" the image-condition tokens followed by the refined prompt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FramePackConfig
from .elementwise import NORM_EPS, gelu, modulated_norm
from .rope import Rotation, rotate


class FeedForward(nn.Module):
    """Linear, activation, Linear; the names net.0.proj and net.2 are the checkpoint's."""

    def __init__(
        self, width: int, mlp_dim: int, activation: Callable[[Tensor], Tensor], operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        first = nn.Module()
        first.proj = operations.Linear(width, mlp_dim, **factory)
        self.net = nn.ModuleList([first, nn.Identity(), operations.Linear(mlp_dim, width, **factory)])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.activation(self.net[0].proj(x)))  # pyright: ignore[reportCallIssue]


class Modulation(nn.Module):
    """Steering vector [B, D] -> count vectors [B, 1, D] each."""

    def __init__(self, width: int, count: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.count = count
        self.linear = operations.Linear(width, count * width, **factory)

    def forward(self, steering: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(steering)).unsqueeze(1).chunk(self.count, dim=-1)


class SelfAttention(nn.Module):
    """Projections to heads, with or without q/k norm and output projection."""

    def __init__(
        self, config: FramePackConfig, operations: Any, has_out: bool = True, has_norm: bool = True, **factory: Any
    ) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = operations.Linear(width, width, **factory)
        self.to_k = operations.Linear(width, width, **factory)
        self.to_v = operations.Linear(width, width, **factory)
        if has_out:
            self.to_out = nn.ModuleList([operations.Linear(width, width, **factory)])
        if has_norm:
            self.norm_q = operations.RMSNorm(config.attention_head_dim, eps=NORM_EPS, **factory)
            self.norm_k = operations.RMSNorm(config.attention_head_dim, eps=NORM_EPS, **factory)

    def forward(self, x: Tensor, lengths: list[int] | None, attention: Any) -> Tensor:
        """Plain attention among the tokens of x (the refiner's)."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](attend(attention, q, k, v, self.heads, lengths, {}))


class JointAttention(SelfAttention):
    """Attention of visual and text tokens together, with projections of their own."""

    def __init__(self, config: FramePackConfig, operations: Any, **factory: Any) -> None:
        super().__init__(config, operations, **factory)
        width = config.width
        self.add_q_proj = operations.Linear(width, width, **factory)
        self.add_k_proj = operations.Linear(width, width, **factory)
        self.add_v_proj = operations.Linear(width, width, **factory)
        self.to_add_out = operations.Linear(width, width, **factory)
        self.norm_added_q = operations.RMSNorm(config.attention_head_dim, eps=NORM_EPS, **factory)
        self.norm_added_k = operations.RMSNorm(config.attention_head_dim, eps=NORM_EPS, **factory)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, D] -> [B, heads, L, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, lengths: list[int] | None, options: dict
) -> Tensor:
    """Attention over the first lengths[i] tokens of sample i (all when None), [B, heads, L, d] -> [B, L, D].

    Samples of unequal length are attended one by one: no mask, so every fast kernel stays usable.
    """
    if lengths is None:
        return attention(q, k, v, heads, transformer_options=options)
    out = q.new_zeros(q.shape[0], q.shape[2], heads * q.shape[3])
    for i, length in enumerate(lengths):
        sample = (tensor[i : i + 1, :, :length] for tensor in (q, k, v))
        out[i : i + 1, :length] = attention(*sample, heads, transformer_options=options)
    return out


class DoubleBlock(nn.Module):
    """Joint attention of the two streams, then an MLP in each."""

    def __init__(self, config: FramePackConfig, operations: Any, attention: Any, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.attention = attention
        self.norm1 = Modulation(width, 6, operations, **factory)
        self.norm1_context = Modulation(width, 6, operations, **factory)
        self.attn = JointAttention(config, operations, **factory)
        self.ff = FeedForward(width, config.mlp_dim, gelu, operations, **factory)
        self.ff_context = FeedForward(width, config.mlp_dim, gelu, operations, **factory)

    def forward(
        self,
        visual: Tensor,  # [B, Lv, D]
        text: Tensor,  # [B, Lt, D]
        steering: Tensor,  # [B, D]
        rotation: Rotation,
        lengths: list[int] | None,
        options: dict,
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.norm1(steering)
        t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = self.norm1_context(steering)
        attn, heads = self.attn, self.attn.heads

        x = modulated_norm(visual, shift, scale)
        t = modulated_norm(text, t_shift, t_scale)
        q = rotate(attn.norm_q(split_heads(attn.to_q(x), heads)), rotation)
        k = rotate(attn.norm_k(split_heads(attn.to_k(x), heads)), rotation)
        q = torch.cat([q, attn.norm_added_q(split_heads(attn.add_q_proj(t), heads))], dim=2)  # [B, heads, Lv + Lt, d]
        k = torch.cat([k, attn.norm_added_k(split_heads(attn.add_k_proj(t), heads))], dim=2)
        v = torch.cat([split_heads(attn.to_v(x), heads), split_heads(attn.add_v_proj(t), heads)], dim=2)
        mixed = attend(self.attention, q, k, v, heads, lengths, options)  # [B, Lv + Lt, D]

        visual_length = visual.shape[1]
        visual = visual + attn.to_out[0](mixed[:, :visual_length]) * gate
        text = text + attn.to_add_out(mixed[:, visual_length:]) * t_gate
        visual = visual + self.ff(modulated_norm(visual, mlp_shift, mlp_scale)) * mlp_gate
        text = text + self.ff_context(modulated_norm(text, t_mlp_shift, t_mlp_scale)) * t_mlp_gate
        return visual, text


class SingleBlock(nn.Module):
    """Attention and MLP side by side on one stream, [visual | text]."""

    def __init__(self, config: FramePackConfig, operations: Any, attention: Any, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.attention = attention
        self.norm = Modulation(width, 3, operations, **factory)
        self.attn = SelfAttention(config, operations, has_out=False, **factory)
        self.proj_mlp = operations.Linear(width, config.mlp_dim, **factory)
        self.proj_out = operations.Linear(width + config.mlp_dim, width, **factory)

    def forward(
        self,
        x: Tensor,  # [B, Lv + Lt, D]
        steering: Tensor,
        rotation: Rotation,
        lengths: list[int] | None,
        options: dict,
    ) -> Tensor:
        shift, scale, gate = self.norm(steering)
        normed = modulated_norm(x, shift, scale)
        attn, heads = self.attn, self.attn.heads
        q = rotate(attn.norm_q(split_heads(attn.to_q(normed), heads)), rotation)
        k = rotate(attn.norm_k(split_heads(attn.to_k(normed), heads)), rotation)
        v = split_heads(attn.to_v(normed), heads)
        mixed = attend(self.attention, q, k, v, heads, lengths, options)
        return x + self.proj_out(torch.cat([mixed, gelu(self.proj_mlp(normed))], dim=-1)) * gate
