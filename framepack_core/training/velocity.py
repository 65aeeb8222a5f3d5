"""One call of the transformer: what a section is told, its noisy latents, and the velocity."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..constants import GUIDANCE, TIMESTEP_SCALE
from ..packing import PackedHistory


class Conditions(NamedTuple):
    """All that a section is made from, apart from its noise."""

    packed: PackedHistory  # unscaled
    context: Tensor  # [B, L, E]
    pooled: Tensor  # [B, P]
    image_embeds: Tensor | None  # [B, tokens, width]; None for a film without a start image
    mask: Tensor | None = None  # [B, L], nonzero on the tokens of each prompt; None when all have L


def predict_velocity(
    model: nn.Module, conditions: Conditions, x: Tensor, sigma: Tensor, dtype: torch.dtype, guidance: float = GUIDANCE
) -> Tensor:
    """noise - latents of x [B, 16, window, h, w] scaled, at noise levels sigma [B]; float32, computed in dtype.

    guidance is the distilled one; models are trained with 10 and nothing else (FP demo_gradio.py).
    """
    packed = conditions.packed.scaled()
    image_embeds = conditions.image_embeds
    return model(
        x.to(dtype),
        sigma * TIMESTEP_SCALE,
        conditions.context.to(dtype),
        conditions.pooled.to(dtype),
        torch.full_like(sigma, guidance * TIMESTEP_SCALE),
        frame_indices=packed.indices,
        history_1x=packed.history_1x.to(dtype),
        history_2x=packed.history_2x.to(dtype),
        history_4x=packed.history_4x.to(dtype),
        image_embeds=None if image_embeds is None else image_embeds.to(dtype),
        attention_mask=conditions.mask,
    )
