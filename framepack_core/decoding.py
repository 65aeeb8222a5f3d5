"""Latents to frames in film order: which stretches are decoded in one go, and how neighbours are joined.

Stretches are ranges of the film's latents. A causal VAE gives 4 T - 3 frames for T latents: of a stretch, the first
latent is one frame, the frame 4 * start of the film, and each later latent four. Neighbouring stretches share latents,
so the frames that both give are cross-faded. Sources: FP demo_gradio.py, demo_gradio_f1.py and utils.py
soft_append_bcthw for sections; diffusers autoencoder_kl_hunyuan_video.py (which the original decodes with) for chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from .constants import FRAMES_PER_LATENT
from .history import History, film_frames, film_latents, made_places

Decode = Callable[[Tensor], Tensor]
"""Latents [B, 16, T, h, w] unscaled -> frames [B, 4 T - 3, H, W, 3]."""

CHUNK_SHARED = 2  # latents that neighbouring chunks share: tiles of 5 at a stride of 3 in the original's VAE
CHUNK_MIN = CHUNK_SHARED + 1


class Join(NamedTuple):
    """How a stretch is laid over the end of the one before it."""

    skipped: int  # frames of the later one that are thrown away
    weights: Callable[[int], Tensor]  # number of shared frames -> weight of the earlier one for each


SECTIONS = Join(0, lambda frames: torch.linspace(1, 0, frames))
CHUNKS = Join(1, lambda frames: 1 - torch.arange(frames) / frames)


class DecodePlan(NamedTuple):
    """What is decoded, in film order: windows, and the chunks that each is decoded in."""

    windows: tuple[tuple[range, ...], ...]
    join: Join  # between windows; chunks of a window are joined as CHUNKS

    @property
    def calls(self) -> int:
        """Stretches that are decoded; what two neighbouring windows share is decoded once."""
        return len(set(chain.from_iterable(self.windows)))


def section_windows(history: History) -> list[range]:
    """Windows in film order over the sections made so far: each section with the neighbour it was made to fit.

    The first one starts with the start image. Raises ValueError when there is no section.
    """
    count = len(made_places(history))
    window, start = history.plan.window, int(history.starts_with_image)
    windows = []
    for number in range(count):
        pair = sorted({number, number + history.plan.neighbour} & set(range(count)))
        first = start + pair[0] * window if number else 0
        windows.append(range(first, start + (pair[-1] + 1) * window))
    return windows


def chunk_spans(span: range, chunk: int | None) -> tuple[range, ...]:
    """A stretch cut into chunks of at most `chunk` latents, at least 3, each two latents into the one before.

    Five is what the original's VAE uses. None, or a stretch that fits, is one chunk. Raises ValueError below 3.
    """
    if chunk is None or len(span) <= chunk:
        return (span,)
    if chunk < CHUNK_MIN:
        raise ValueError(f"chunk is {chunk} latents; it must be 0 (as memory allows) or at least {CHUNK_MIN}.")
    starts = range(span.start, span.stop - 1, chunk - CHUNK_SHARED)  # one latent alone would add no frame
    return tuple(range(start, min(start + chunk, span.stop)) for start in starts)


def plan_sections(history: History, chunk: int | None = None) -> DecodePlan:
    """FramePack's way: windows of two sections that fade over 4 w - 3 frames."""
    return DecodePlan(tuple(chunk_spans(window, chunk) for window in section_windows(history)), SECTIONS)


def plan_whole(latent_frames: int, chunk: int | None = None) -> DecodePlan:
    """The film as one window, chunk after chunk; without a chunk, all in one go."""
    return DecodePlan(tuple((part,) for part in chunk_spans(range(latent_frames), chunk)), CHUNKS)


def decode_film(latents: Tensor, plan: DecodePlan, decode: Decode) -> Iterator[Tensor]:
    """Frames of [B, 16, T, h, w] in film order, in pieces [B, F, H, W, 3] that are final: 4 T - 3 together.

    Let go of a piece before asking for the next one, or two windows are in memory at once.
    """
    known: dict[range, Tensor] = {}  # chunks of this window that the next one has too

    def decode_window(number: int) -> Tensor:
        chunks = plan.windows[number]
        repeated = set(chunks).intersection(*plan.windows[number + 1 : number + 2])

        def decode_chunk(place: int) -> Tensor:
            chunk = chunks[place]
            frames = known.pop(chunk, None)
            if frames is None:
                frames = decode(latents[:, :, chunk.start : chunk.stop])
            if chunk in repeated and number + 1 < len(plan.windows):
                known[chunk] = frames
            return frames

        if len(chunks) == 1:
            return decode_chunk(0)
        return collect(join_spans(chunks, decode_chunk, CHUNKS), film_frames(chunks[-1].stop - chunks[0].start))

    windows = [range(chunks[0].start, chunks[-1].stop) for chunks in plan.windows]
    return join_spans(windows, decode_window, plan.join)


def join_spans(spans: Sequence[range], decode: Callable[[int], Tensor], join: Join) -> Iterator[Tensor]:
    """Frames of overlapping stretches in pieces that are final, each stretch faded into the end of the one before.

    decode: number of a stretch -> its frames [B, 4 T - 3, H, W, 3].
    """
    tail = None
    for number, span in enumerate(spans):
        frames = decode(number)
        if tail is not None:
            frames, shared = frames[:, join.skipped :], tail.shape[1]
            yield fade(tail, frames[:, :shared], join.weights(shared))
            frames = frames[:, shared:]
        kept = frames.shape[1]
        if number + 1 < len(spans):
            kept -= FRAMES_PER_LATENT * (span.stop - 1 - spans[number + 1].start) + 1 - join.skipped
        yield frames[:, :kept]
        tail = frames[:, kept:].clone()  # a view would keep the whole stretch in memory
        del frames


def collect(pieces: Iterable[Tensor], frames: int) -> Tensor:
    """Pieces [B, F, H, W, 3] as one tensor [B, frames, H, W, 3], allocated once; a piece that is all is not copied."""
    film, filled = None, 0
    for piece in pieces:
        if piece.shape[1] == frames:
            return piece
        if film is None:
            film = piece.new_empty(piece.shape[0], frames, *piece.shape[2:])
        film[:, filled : filled + piece.shape[1]] = piece
        filled += piece.shape[1]
    if film is None or filled != frames:
        raise RuntimeError(f"The VAE gave {filled} frames where {frames} belong; it is not a causal video VAE.")
    return film


def fade(before: Tensor, after: Tensor, weights: Tensor) -> Tensor:
    """[B, F, ...] twice and the first one's weights [F] -> their mixture, in the memory of `before`."""
    weights = weights.to(before).view(1, -1, *[1] * (before.ndim - 2))
    return before.mul_(weights).add_((1 - weights) * after)


def checked_latents(history: History, samples: Tensor | None = None) -> Tensor:
    """Latents of the film so far, or `samples` in their place, [B, 16, T, h, w].

    Raises ValueError when nothing has been made, for samples of another shape, and for NaN, naming the section.
    """
    latents = film_latents(history)
    if samples is not None:
        if samples.shape != latents.shape:
            raise ValueError(
                f"The latent is {tuple(samples.shape)}, the film of this history {tuple(latents.shape)} (batch, "
                "channels, frames, height, width); connect the latent that belongs to it, or disconnect one of the two."
            )
        latents = samples
    check_finite(latents, lambda frame: _owner(history, frame))
    return latents


def check_finite(latents: Tensor, owner: Callable[[int], str] = "frame {}".format) -> None:
    """Raises ValueError for latents [B, C, T, h, w] with NaN or infinity; owner: what latent frame t belongs to."""
    finite = torch.isfinite(latents).all(dim=4).all(dim=3).all(dim=1).all(dim=0)  # [T]
    if not finite.all():
        raise ValueError(
            f"The latents of {owner(int(finite.int().argmin()))} hold NaN or infinity, which would decode to black; "
            "sample again (in bf16 if fp16 did it)."
        )


def _owner(history: History, frame: int) -> str:
    """The section, in words, that made a latent frame of the film."""
    frame -= int(history.starts_with_image)
    if frame < 0:
        return "the start image"
    place = made_places(history)[frame // history.plan.window]
    return next(history.plan.name(section) for section in history.plan.sections if history.plan.place(section) == place)
