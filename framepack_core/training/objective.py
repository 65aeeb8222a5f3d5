"""The loss of flow matching on a section.

Source: Lipman et al., "Flow Matching for Generative Modeling" (arXiv 2210.02747), on straight paths; the shift of noise
levels is Esser et al. (arXiv 2403.03206) 5.3.2, the rest follows what inference feeds (FP k_diffusion/wrapper.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..constants import LATENT_SCALE
from .sections import Batch
from .velocity import predict_velocity

Weight = Callable[[Tensor], Tensor]
"""Noise levels [B] -> weights of their losses [B]."""


@dataclass(frozen=True)
class Objective:
    """How the loss is formed."""

    shift: float = 3.0  # above 1 leans to high noise levels
    dtype: torch.dtype = torch.bfloat16  # of the computation; weights may have another
    weight: Weight | None = None


def flow_loss(model: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity at noise levels drawn here, a scalar with gradient."""
    sigma = draw_sigmas(len(batch.latents), objective.shift, generator)
    noise = torch.randn(batch.latents.shape, generator=generator, device=generator.device)
    losses = velocity_error(model, batch, sigma, noise, objective.dtype)
    return (losses if objective.weight is None else losses * objective.weight(sigma)).mean()


def relative_flow_loss(model: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> Tensor:
    """The logarithm of flow_loss: every batch counts by what share of its loss a step takes away.

    A film from words alone can only be guessed: the plain gradient of such a batch is longer and noisier than that of
    one that sees what went before.
    """
    return flow_loss(model, batch, objective, generator).log()


def velocity_error(model: nn.Module, batch: Batch, sigma: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean squared error of each sample, [B], at noise levels sigma [B] and for this noise (shaped as the latents)."""
    latents = batch.latents * LATENT_SCALE
    level = sigma.view(-1, 1, 1, 1, 1)
    x = level * noise + (1 - level) * latents
    velocity = predict_velocity(model, batch.conditions, x, sigma, dtype)
    return (velocity - (noise - latents)).square().flatten(1).mean(dim=1)


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """count noise levels in 0..1, one from each of count equal parts of the distribution, so that batches vary less."""
    place = torch.rand(count, generator=generator, device=generator.device)
    u = (torch.arange(count, device=generator.device) + place) / count
    return shift * u / (1 + (shift - 1) * u)
