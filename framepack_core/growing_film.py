"""A film's frames while it is made: what each new section adds, and which frames it changes.

After every section, what stands is what decode_film gives of plan_sections for the history so far, bit by bit. A new
section comes after the film or before it, as the plan wants; either way it changes the frames at that end only, which
are cross-faded with its own. Decoding and joining are two objects, so that each can run where it disturbs least.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .constants import FRAMES_PER_LATENT
from .decoding import CHUNKS, SECTIONS, Decode, chunk_spans, collect, fade, join_spans, section_windows
from .history import History, film_frames, made_places, read_frames

PICTURES = 3


class NewSection(NamedTuple):
    """A section and the neighbour it was made to fit, decoded in chunks that are not joined yet."""

    chunks: tuple[range, ...]  # film frames of the latents
    frames: tuple[Tensor, ...]  # of each chunk, [B, 4 T - 3, H, W, 3]
    shared: int  # frames of the film that it changes, at its end that grows; 0: the first section
    at_end: bool  # the end of the film that grows is its last frame, else its first

    @property
    def length(self) -> int:
        """Frames of all chunks together."""
        return film_frames(self.chunks[-1].stop - self.chunks[0].start)


class Growth(NamedTuple):
    """What a section does to the film's frames."""

    at_end: bool  # as of NewSection
    joined: Tensor | None  # [B, F, H, W, 3] final, in place of what was open; None: the first section
    open: Tensor  # [B, F, H, W, 3] at that end; the next section changes it, and none leaves it as it is


class SectionDecoder:
    """Decodes every section once. What two neighbouring windows share is decoded once, too."""

    def __init__(self, decode: Decode, chunk: int) -> None:
        """chunk: latents per call of decode, at least 3."""
        self.sections = 0  # that have been decoded
        self._decode, self._chunk = decode, chunk
        self._known: dict[range, Tensor] = {}  # chunks inside the newest section: the next window may have them too

    def new_sections(self, history: History) -> Iterator[NewSection]:
        """Those that have not been decoded yet, in the order in which they were made."""
        while self.sections < history.draws:
            section = self._decoded(_as_made(history, self.sections + 1))
            self.sections += 1
            yield section

    def _decoded(self, history: History) -> NewSection:
        places = made_places(history)
        newest = history.plan.sections[history.draws - 1]
        number = places.index(history.plan.place(newest))
        span = section_windows(history)[number]
        first = places[0] * history.plan.window - int(history.starts_with_image)  # film frame of latent 0
        chunks = chunk_spans(range(first + span.start, first + span.stop), self._chunk)
        known, own = self._known, newest.target.frames
        frames = tuple(
            known[chunk] if chunk in known else self._decode(read_frames(history, chunk)) for chunk in chunks
        )
        self._known = {
            chunk: made
            for chunk, made in zip(chunks, frames, strict=True)
            if own.start <= chunk.start and chunk.stop <= own.stop
        }
        shared = film_frames(history.plan.window) if len(places) > 1 else 0
        return NewSection(chunks, frames, shared, at_end=number == len(places) - 1)


class GrowingFilm:
    """Joins sections to the film, in the order in which they were made. Holds one section's frames."""

    def __init__(self) -> None:
        self._open: Tensor | None = None

    def join(self, section: NewSection) -> Growth:
        """What the section does to the film."""
        frames = collect(join_spans(section.chunks, section.frames.__getitem__, CHUNKS), section.length)
        growth = _growth(self._open, frames, section)
        self._open = growth.open
        return growth


def _growth(before: Tensor | None, frames: Tensor, section: NewSection) -> Growth:
    """What frames [B, F, H, W, 3] of a section do to those that were open."""
    shared, weights = section.shared, SECTIONS.weights(section.shared)
    if before is None:
        return Growth(True, None, frames)
    if section.at_end:
        seam = fade(before[:, -shared:].clone(), frames[:, :shared], weights)
        return Growth(True, torch.cat([before[:, :-shared], seam], dim=1), frames[:, shared:].clone())
    seam = fade(frames[:, -shared:].clone(), before[:, :shared], weights)
    return Growth(False, torch.cat([seam, before[:, shared:]], dim=1), frames[:, :-shared].clone())


def glimpse(history: History, decode: Decode) -> Tensor:
    """Pictures [3, H, W, 3] of the newest section's first film, from its beginning to its end.

    Each is the last frame of two latents, which the VAE decodes in a sixth of the time that the section takes.
    """
    newest = history.plan.sections[history.draws - 1]
    last = len(newest.target.frames) - 1
    latents = read_frames(history, newest.target.frames)[:1]  # [1, 16, w, h, w]
    places = torch.linspace(min(1, last), last, PICTURES).round().int().tolist()
    return torch.stack([decode(latents[:, :, max(place - 1, 0) : place + 1])[0, -1] for place in places])


def pictures(section: NewSection) -> Tensor:
    """Pictures [3, H, W, 3] of the first film's new frames, from the first to the last."""
    new = range(section.shared, section.length) if section.at_end else range(section.length - section.shared)
    places = torch.linspace(0, len(new) - 1, PICTURES).round().int().tolist()
    return torch.stack([_frame(section, new[place]) for place in places])


def _frame(section: NewSection, place: int) -> Tensor:
    """[H, W, 3] of the first film, from the first chunk that has this frame."""
    for chunk, frames in zip(section.chunks, section.frames, strict=True):
        at = place - FRAMES_PER_LATENT * (chunk.start - section.chunks[0].start)
        if at < frames.shape[1]:
            return frames[0, at]
    raise IndexError(f"The section has {section.length} frames, and not one at {place}.")


def _as_made(history: History, count: int) -> History:
    """The history when it had this many sections."""
    places = {history.plan.place(section) for section in history.plan.sections[:count]}
    made = (latents if place in places else None for place, latents in enumerate(history.sections))
    return history._replace(sections=tuple(made))
