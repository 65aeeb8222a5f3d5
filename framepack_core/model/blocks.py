"""Transformer blocks. Parameter names are the checkpoint's (diffusers names).

Source: FP hunyuan_video_packed.py. Letters: B batch, L tokens, D width, H heads, d head dimension; "visual" are the
packed history and the section, "text" the image-condition tokens followed by the refined prompt.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FramePackConfig
from .elementwise import NORM_EPS, gated_norm, gated_sum, gelu, joined_gelu, modulated_norm, normed_rotation
from .pieces import in_pieces
from .rope import Rotation


class Services(NamedTuple):
    """What blocks ask of their host, beside layers."""

    attention: Callable[..., Tensor]
    """attention(q, k, v, heads, transformer_options=...) with q k v [B, H, L, d] -> [B, L, H * d]"""
    weight_for: Callable[[nn.Module, Tensor], Tensor]
    """weight_for(norm, x): the weight of a norm, on the device and in the dtype of x"""


class Extent(NamedTuple):
    """How far the joint tokens of each sample reach, and how many of them an MLP takes at once."""

    lengths: tuple[int, ...] | None = None  # None: all tokens of all samples are valid
    piece: int | None = None  # None: all at once


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
    """Steering vector [B, D] -> vectors [B, count, D]: shifts, scales and gates."""

    def __init__(self, width: int, count: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.count = count
        self.linear = operations.Linear(width, count * width, **factory)

    def forward(self, steering: Tensor) -> Tensor:
        return self.linear(F.silu(steering)).unflatten(-1, (self.count, -1))


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

    def forward(self, x: Tensor, lengths: tuple[int, ...] | None, attention: Any) -> Tensor:
        """Plain attention among the tokens of x (the refiner's)."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](attend(attention, q, k, v, lengths, {}))


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
    """[B, L, D] -> [B, L, heads, D / heads], a view."""
    return x.unflatten(-1, (heads, -1))


def attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...] | None, options: dict) -> Tensor:
    """Attention to the first lengths[i] keys of sample i (all when None), [B, L, H, d] -> [B, L, D].

    Samples of unequal length are attended one by one: no mask, so every fast kernel stays usable. What comes out at
    queries beyond the length is no more than filling; nothing attends to it.
    """
    heads = q.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, L, d]
    if lengths is None:
        return attention(q, k, v, heads, transformer_options=options)
    samples = [
        attention(q[i : i + 1], k[i : i + 1, :, :n], v[i : i + 1, :, :n], heads, transformer_options=options)
        for i, n in enumerate(lengths)
    ]
    return torch.cat(samples)


class DoubleBlock(nn.Module):
    """Joint attention of the two streams, then an MLP in each."""

    def __init__(self, config: FramePackConfig, operations: Any, services: Services, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.services = services
        self.norm1 = Modulation(width, 6, operations, **factory)
        self.norm1_context = Modulation(width, 6, operations, **factory)
        self.attn = JointAttention(config, operations, **factory)
        self.ff = FeedForward(width, config.mlp_dim, gelu, operations, **factory)
        self.ff_context = FeedForward(width, config.mlp_dim, gelu, operations, **factory)

    def forward(
        self,
        visual: Tensor,  # [B, Lv, D]
        text: Tensor,  # [B, Lt, D]
        vectors: Tensor,  # [B, 12, D]: those of norm1, then those of norm1_context
        rotation: Rotation,
        extent: Extent,
        options: dict,
    ) -> tuple[Tensor, Tensor]:
        parts = vectors.split(1, dim=1)  # 12 x [B, 1, D]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts[:6]
        t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = parts[6:]
        attn, visual_length = self.attn, visual.shape[1]

        q, k, v = self._joint_heads(
            modulated_norm(visual, shift, scale), modulated_norm(text, t_shift, t_scale), rotation
        )
        mixed = attend(self.services.attention, q, k, v, extent.lengths, options)  # [B, Lv + Lt, D]
        del q, k, v  # before the MLP, which needs the memory

        visual_branch = attn.to_out[0](mixed[:, :visual_length])
        text_branch = attn.to_add_out(mixed[:, visual_length:])
        del mixed
        visual, normed = gated_norm(visual, visual_branch, gate, mlp_shift, mlp_scale)
        text, t_normed = gated_norm(text, text_branch, t_gate, t_mlp_shift, t_mlp_scale)
        del visual_branch, text_branch
        visual = in_pieces(partial(_add_mlp, self.ff, mlp_gate), extent.piece, visual, normed)
        text = in_pieces(partial(_add_mlp, self.ff_context, t_mlp_gate), extent.piece, text, t_normed)
        return visual, text

    def _joint_heads(self, visual: Tensor, text: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of both streams, each projected into its part of one buffer [B, Lv + Lt, H, d]."""
        attn, weight_for = self.attn, self.services.weight_for
        batch, at, width = visual.shape  # text begins at Lv
        q, k, v = (visual.new_empty(batch, at + text.shape[1], attn.heads, width // attn.heads) for _ in range(3))
        for joint, project, text_project, norm, text_norm in (
            (q, attn.to_q, attn.add_q_proj, attn.norm_q, attn.norm_added_q),
            (k, attn.to_k, attn.add_k_proj, attn.norm_k, attn.norm_added_k),
        ):
            own, other = split_heads(project(visual), attn.heads), split_heads(text_project(text), attn.heads)
            normed_rotation(own, weight_for(norm, own), rotation, NORM_EPS, out=joint[:, :at])
            normed_rotation(other, weight_for(text_norm, other), None, NORM_EPS, out=joint[:, at:])
        v[:, :at] = split_heads(attn.to_v(visual), attn.heads)
        v[:, at:] = split_heads(attn.add_v_proj(text), attn.heads)
        return q, k, v


class SingleBlock(nn.Module):
    """Attention and MLP side by side on one stream, [visual | text]."""

    def __init__(self, config: FramePackConfig, operations: Any, services: Services, **factory: Any) -> None:
        super().__init__()
        width = config.width
        self.services = services
        self.norm = Modulation(width, 3, operations, **factory)
        self.attn = SelfAttention(config, operations, has_out=False, **factory)
        self.proj_mlp = operations.Linear(width, config.mlp_dim, **factory)
        self.proj_out = operations.Linear(width + config.mlp_dim, width, **factory)

    def forward(
        self,
        x: Tensor,  # [B, Lv + Lt, D]
        vectors: Tensor,  # [B, 3, D]
        rotation: Rotation,
        extent: Extent,
        options: dict,
        wanted: slice = slice(None),
    ) -> Tensor:
        """The tokens that are wanted; the others then only serve as keys and values."""
        shift, scale, gate = vectors.split(1, dim=1)  # 3 x [B, 1, D]
        attn, weight_for = self.attn, self.services.weight_for
        normed = modulated_norm(x, shift, scale)
        wanted_normed = normed[:, wanted]
        wanted_rotation = Rotation(rotation.cos[:, :, wanted], rotation.sin[:, :, wanted])

        q = split_heads(attn.to_q(wanted_normed), attn.heads)
        q = normed_rotation(q, weight_for(attn.norm_q, q), wanted_rotation, NORM_EPS)
        k = split_heads(attn.to_k(normed), attn.heads)
        k = normed_rotation(k, weight_for(attn.norm_k, k), rotation, NORM_EPS)
        v = split_heads(attn.to_v(normed), attn.heads)
        mixed = attend(self.services.attention, q, k, v, extent.lengths, options)  # [B, L, D]
        del q, k, v, normed  # before the MLP, which needs the memory
        return in_pieces(partial(self._add_branches, gate), extent.piece, x[:, wanted], mixed, wanted_normed)

    def _add_branches(
        self, gate: Tensor, x: Tensor, mixed: Tensor, normed: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """x plus the gated projection of [attention | MLP]."""
        joined = joined_gelu(mixed, self.proj_mlp(normed))  # [B, L, D + mlp_dim]
        return gated_sum(x, self.proj_out(joined), gate, out)


def _add_mlp(mlp: nn.Module, gate: Tensor, x: Tensor, normed: Tensor, out: Tensor | None = None) -> Tensor:
    """x plus the gated MLP of its norm."""
    return gated_sum(x, mlp(normed), gate, out)
