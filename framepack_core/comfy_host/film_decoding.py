"""A film's latents to frames through the host's VAE, piece by piece, with progress and interrupts."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import comfy.utils
from torch import Tensor

from ..constants import LATENT_CHANNELS, PIXELS_PER_LATENT
from ..decoding import (
    DecodePlan,
    check_finite,
    checked_latents,
    collect,
    decode_film,
    plan_sections,
    plan_whole,
    section_windows,
)
from ..history import History, film_frames
from .frames import check_vae
from .vae_decoder import VaeDecoder

SECTIONS, WHOLE = "section by section", "whole"
MODES = (SECTIONS, WHOLE)


class DecodeOptions(NamedTuple):
    """How a film is decoded."""

    mode: str = SECTIONS
    chunk: int = 0  # latents per call of the VAE; 0: as memory allows
    tile: int = 0  # pixels a side; 0: whole pictures


DEFAULT_OPTIONS = DecodeOptions()


class FrameStream(NamedTuple):
    """Frames of a film in order, made while they are taken."""

    shape: tuple[int, int, int, int]  # films, frames, height, width
    pieces: Iterator[Tensor]  # [B, F, H, W, 3] each, float32 on the CPU, values 0 to 1


def stream_frames(
    vae: Any, history: History | None, samples: Tensor | None = None, options: DecodeOptions = DEFAULT_OPTIONS
) -> FrameStream:
    """Frames of a history, or of latents [B, 16, T, h, w] in its place. Refuses all bad input before it decodes.

    Raises ValueError for a VAE of another family, an empty history, latents of another shape than the history's or
    with NaN, and for latents without a history section by section.
    """
    check_vae(vae)
    latents, spans, plan = _planned(history, samples, options)
    batch, channels, _, height, width = latents.shape
    longest = (batch, channels, max(map(len, spans)), height, width)
    decoder = VaeDecoder(vae, longest, options.chunk, options.tile // PIXELS_PER_LATENT)
    plan = plan(decoder.chunk)
    shape = (batch, film_frames(latents.shape[2]), height * PIXELS_PER_LATENT, width * PIXELS_PER_LATENT)
    return FrameStream(shape, _with_progress(latents, plan, decoder))


def decode_frames(
    vae: Any, history: History | None, samples: Tensor | None = None, options: DecodeOptions = DEFAULT_OPTIONS
) -> Tensor:
    """IMAGE of all frames made so far, [B * F, H, W, 3] on the CPU. Raises as stream_frames does."""
    stream = stream_frames(vae, history, samples, options)
    return collect(stream.pieces, stream.shape[1]).flatten(0, 1)


def _planned(
    history: History | None, samples: Tensor | None, options: DecodeOptions
) -> tuple[Tensor, list[range], Callable[[int], DecodePlan]]:
    """The latents, the stretches that one call may decode, and the plan for a chunk of so many latents."""
    if history is None:
        latents = _bare_latents(samples)
        if options.mode == SECTIONS:
            raise ValueError(
                f"Decoding {SECTIONS} needs a history, which says where sections begin; connect one, or set mode to "
                f"{WHOLE}."
            )
    else:
        latents = checked_latents(history, samples)
    frames = latents.shape[2]
    if history is None or options.mode == WHOLE:
        return latents, [range(frames)], lambda chunk: plan_whole(frames, chunk)
    return latents, section_windows(history), lambda chunk: plan_sections(history, chunk)


def _bare_latents(samples: Tensor | None) -> Tensor:
    if samples is None:
        raise ValueError("There is nothing to decode; connect a history or a latent.")
    if samples.ndim != 5 or samples.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"The latent is {tuple(samples.shape)}; FramePack's films are [batch, {LATENT_CHANNELS}, frames, height/8, "
            "width/8]. Connect the latent of FramePack Sampler."
        )
    check_finite(samples)
    return samples


def _with_progress(latents: Tensor, plan: DecodePlan, decoder: VaeDecoder) -> Iterator[Tensor]:
    if decoder.streams and plan.calls == 1 and len(latents) == 1:  # the film as one stretch
        yield from _streamed(latents, decoder)
        return
    bar = comfy.utils.ProgressBar(plan.calls)

    def decode(part: Tensor) -> Tensor:
        frames = decoder(part)
        bar.update(1)
        return frames

    yield from decode_film(latents, plan, decode)


def _streamed(latents: Tensor, decoder: VaeDecoder) -> Iterator[Tensor]:
    bar = comfy.utils.ProgressBar(film_frames(latents.shape[2]))
    for frames in decoder.stream(latents):
        bar.update(frames.shape[1])
        yield frames
