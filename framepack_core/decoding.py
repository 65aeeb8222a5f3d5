"""Latents to frames, section by section with a cross-fade, in film order.

Source: FP demo_gradio.py, demo_gradio_f1.py and utils.py soft_append_bcthw. Each section is decoded together
with the neighbour that it was made to fit; two neighbouring windows share 4 * window - 3 frames.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .history import History, film_frames, made_places

Decode = Callable[[Tensor], Tensor]
"""Latents [B, 16, T, h, w] unscaled -> frames [B, 4 T - 3, H, W, 3]."""


class DecodeWindow(NamedTuple):
    """Sections decoded in one go, in film order, and whether the start image is in front of them."""

    sections: range
    has_start: bool


def decode_windows(history: History) -> list[DecodeWindow]:
    """Windows in film order over the sections made so far. Raises ValueError when there is none."""
    made = made_places(history)
    windows = []
    for place in made:
        pair = sorted({place, place + history.plan.neighbour} & set(made))
        windows.append(DecodeWindow(range(pair[0], pair[-1] + 1), place == 0 and history.starts_with_image))
    return windows


def window_latents(history: History, window: DecodeWindow) -> Tensor:
    """Latents of one window, [B, 16, T, h, w]."""
    parts = [history.start_latent] if window.has_start else []
    parts += [history.sections[place] for place in window.sections]
    return torch.cat([part for part in parts if part is not None], dim=2)


def decode_film(history: History, decode: Decode) -> Iterator[Tensor]:
    """Frames in film order, in pieces [B, F, H, W, 3] that are final: their lengths add up to decoded_frames."""
    overlap = film_frames(history.plan.window)
    tail = None
    windows = decode_windows(history)
    for number, window in enumerate(windows):
        frames = decode(window_latents(history, window))
        if tail is not None:
            frames = torch.cat([cross_fade(tail, frames[:, :overlap]), frames[:, overlap:]], dim=1)
        is_last = number + 1 == len(windows)
        final = frames.shape[1] if is_last else frames.shape[1] - overlap
        tail = frames[:, final:]
        yield frames[:, :final]


def decoded_frames(history: History) -> int:
    """Number of frames that decode_film gives: 36 n + 1 for a whole film of n usual sections with a start image."""
    made = history.draws * history.plan.window
    return film_frames(made + int(history.starts_with_image))


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """[B, F, ...] twice -> a linear fade whose first frame is all before and whose last is all after."""
    frames = before.shape[1]
    weights = torch.linspace(1, 0, frames, dtype=before.dtype, device=before.device)
    weights = weights.view(1, frames, *[1] * (before.ndim - 2))
    return weights * before + (1 - weights) * after
