"""Films from a model in training, without a host: the `denoise` of the section loop."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..constants import LATENT_SCALE
from ..generate import Denoise
from ..packing import PackedHistory
from ..section_plan import Section
from ..unipc import sample_flow_unipc
from .velocity import Conditions, predict_velocity


class Text(NamedTuple):
    """A prompt's features, one row per film or one row for all."""

    context: Tensor  # [B or 1, L, E]
    pooled: Tensor  # [B or 1, P]
    mask: Tensor | None = None  # [B or 1, L], nonzero on the tokens of each prompt; None when all have L


def model_denoise(
    model: nn.Module,
    text: Callable[[Section], Text],
    sigmas: Tensor,
    image_embeds: Tensor | None = None,
    negative: Text | None = None,
    cfg: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Denoise:
    """Sampling with flow-UniPC over sigmas [steps + 1]; cfg other than 1 needs a negative prompt.

    Histories are on the CPU, the model anywhere. Raises ValueError for a cfg without a negative.
    """
    if cfg != 1.0 and negative is None:
        raise ValueError(f"cfg is {cfg}, which needs a negative prompt; give one, or set cfg to 1.")
    device = next(model.parameters()).device

    @torch.no_grad()
    def denoise(section: Section, packed: PackedHistory, noise: Tensor) -> Tensor:
        groups = (group.to(device) for group in packed[:3])
        there = PackedHistory(*groups, indices=packed.indices)
        positive = _conditions(there, text(section), image_embeds, device)
        against = None if negative is None else _conditions(there, negative, image_embeds, device)

        def denoised(x: Tensor, sigma: Tensor) -> Tensor:
            x = x.to(dtype).float()  # from the rounded x, as inference does
            level = sigma.view(-1, 1, 1, 1, 1)
            wanted = x - level * predict_velocity(model, positive, x, sigma, dtype)
            if against is None or cfg == 1.0:
                return wanted
            unwanted = x - level * predict_velocity(model, against, x, sigma, dtype)
            return unwanted + cfg * (wanted - unwanted)

        return (sample_flow_unipc(denoised, noise.to(device), sigmas) / LATENT_SCALE).cpu()

    return denoise


def _conditions(packed: PackedHistory, text: Text, image_embeds: Tensor | None, device: torch.device) -> Conditions:
    films = len(packed.history_1x)

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device).expand(films, *tensor.shape[1:])

    context, pooled = text.context.to(device), text.pooled.to(device)
    context, pooled = context.expand(films, -1, -1), pooled.expand(films, -1)
    return Conditions(packed, context, pooled, rows(image_embeds), rows(text.mask))
