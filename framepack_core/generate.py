"""The primitive, one section, and the loop over it."""

from collections.abc import Callable
from itertools import islice, repeat

import torch
from torch import Tensor

from .history import History, append_section, due_section
from .packing import PackedHistory, pack_history
from .schedule import section_noise
from .section_plan import Section

Denoise = Callable[[Section, PackedHistory, Tensor], Tensor]
"""(section, what it sees, noise [B, 16, window, h, w]) -> latents of the section, unscaled."""


def run_section(history: History, denoise: Denoise) -> History:
    """Make the next section. Raises ValueError when the film is whole."""
    section = due_section(history)
    latents = denoise(section, pack_history(history, section), section_noise(history))
    return append_section(history, latents)


def generate(
    history: History,
    denoise: Denoise,
    max_sections: int | None = None,
    on_section: Callable[[History], None] | None = None,
) -> History:
    """Make the sections that are missing, or at most max_sections of them; on_section gets the history after each."""
    missing = len(history.sections) - history.draws
    for _ in islice(repeat(None), missing if max_sections is None else min(max_sections, missing)):
        history = run_section(history, denoise)
        if on_section:
            on_section(history)
    return history


def check_finite(denoised: Tensor, section_name: str, step: int) -> None:
    """Raises ValueError when the model's output has NaN or infinity; step counts from 1."""
    if not torch.isfinite(denoised).all():
        raise ValueError(
            f"The model returned NaN or infinity at step {step} of {section_name}; sampling stopped there. "
            "Try weight_dtype default, take off attention patches, or check the checkpoint file."
        )
