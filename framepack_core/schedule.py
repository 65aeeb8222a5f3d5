"""Noise levels and the noise itself."""

import math

import torch
from torch import Tensor

from .constants import SHIFT_LENGTH, SHIFT_MAX, SHIFT_MU
from .history import History, section_shape


def flow_shift(latent_frames: int, height: int, width: int) -> float:
    """exp(mu) for the generated window alone, sizes in latents; 7 from 8,798 tokens up.

    Source: FP k_diffusion_hunyuan.py calculate_flux_mu (mu is linear in the token count, capped at ln 7).
    """
    tokens = latent_frames * height * width // 4
    (low, high), (mu_low, mu_high) = SHIFT_LENGTH, SHIFT_MU
    slope = (mu_high - mu_low) / (high - low)
    return math.exp(min(slope * tokens + mu_low - slope * low, math.log(SHIFT_MAX)))


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """steps + 1 noise levels from 1 to 0, float32: shift / (shift + 1/t - 1) for t from 1 to 0.

    Source: FP k_diffusion_hunyuan.py get_flux_sigmas_from_mu. Raises ValueError for steps or shift below 1 or 0.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling needs at least 1 step (25 is usual).")
    if not shift > 0:
        raise ValueError(f"shift is {shift}; it must be above 0 (7 is usual; 0 in the widget means automatic).")
    t = torch.linspace(1, 0, steps + 1)
    return shift / (shift + (1 / t - 1))


def section_sigmas(history: History, steps: int, shift: float = 0.0) -> Tensor:
    """Noise levels for a section of this film; shift 0 takes the one that its size asks for."""
    _, _, window, height, width = section_shape(history)
    return flow_sigmas(steps, shift if shift else flow_shift(window, height, width))


def section_noise(history: History) -> Tensor:
    """Noise of the next section, [B, 16, window, h, w] float32.

    One CPU stream serves the whole film, seeded once, one draw per section in the order of generation
    (FP demo_gradio.py); so the draws of earlier sections are taken and dropped.
    """
    generator = torch.Generator("cpu").manual_seed(history.seed)
    shape = section_shape(history)
    for _ in range(history.draws):
        torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)
