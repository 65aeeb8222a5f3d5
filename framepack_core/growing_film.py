"""A film's frames while it is made: what each new section adds, and which frames it changes.

After every section, what stands is what decode_film gives of plan_sections for the history so far, bit by bit. A new
section comes after the film or before it, as the plan wants; either way it changes the frames at that end only, which
are cross-faded with its own.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .decoding import CHUNKS, SECTIONS, Decode, chunk_spans, collect, fade, join_spans, section_windows
from .history import History, film_frames, made_places, read_frames

PICTURES = 3


class Growth(NamedTuple):
    """What a section does to the film's frames."""

    at_end: bool  # the end of the film that grows is its last frame, else its first
    joined: Tensor | None  # [B, F, H, W, 3] final, in place of what was open; None: the first section
    open: Tensor  # [B, F, H, W, 3] at that end; the next section changes it, and none leaves it as it is


class GrowingFilm:
    """Decodes every section once, with the neighbour it was made to fit. Holds one section's frames."""

    def __init__(self, decode: Decode, chunk: int) -> None:
        """chunk: latents per call of decode, at least 3."""
        self.sections = 0  # that have been decoded
        self._decode, self._chunk = decode, chunk
        self._open: Tensor | None = None
        self._known: dict[range, Tensor] = {}  # chunks inside the newest section: the next window may have them too

    def grow(self, history: History) -> Iterator[Growth]:
        """One growth for each section that the film does not have yet, in the order in which they were made."""
        while self.sections < history.draws:
            growth = self._join(_as_made(history, self.sections + 1))
            self.sections += 1
            self._open = growth.open
            yield growth

    def _join(self, history: History) -> Growth:
        places = made_places(history)
        newest = history.plan.sections[history.draws - 1]
        number = places.index(history.plan.place(newest))
        span = section_windows(history)[number]
        first = places[0] * history.plan.window - int(history.starts_with_image)  # film frame of latent 0
        frames = self._window(history, range(first + span.start, first + span.stop), newest.target.frames)
        before, shared, at_end = self._open, film_frames(history.plan.window), number == len(places) - 1
        if before is None:
            return Growth(True, None, frames)
        weights = SECTIONS.weights(shared)
        if at_end:
            seam = fade(before[:, -shared:].clone(), frames[:, :shared], weights)
            return Growth(True, torch.cat([before[:, :-shared], seam], dim=1), frames[:, shared:].clone())
        seam = fade(frames[:, -shared:].clone(), before[:, :shared], weights)
        return Growth(False, torch.cat([seam, before[:, shared:]], dim=1), frames[:, :-shared].clone())

    def _window(self, history: History, window: range, newest: range) -> Tensor:
        """Frames [B, 4 T - 3, H, W, 3] of a stretch of film frames."""
        chunks, known = chunk_spans(window, self._chunk), self._known
        self._known = {}

        def decode(number: int) -> Tensor:
            chunk = chunks[number]
            frames = known.pop(chunk, None)
            if frames is None:
                frames = self._decode(read_frames(history, chunk))
            if newest.start <= chunk.start and chunk.stop <= newest.stop:
                self._known[chunk] = frames
            return frames

        return collect(join_spans(chunks, decode, CHUNKS), film_frames(len(window)))


def glimpse(history: History, decode: Decode) -> Tensor:
    """Pictures [3, H, W, 3] of the newest section's first film, from its beginning to its end.

    Each is the last frame of two latents, which the VAE decodes in a sixth of the time that the section takes.
    """
    newest = history.plan.sections[history.draws - 1]
    last = len(newest.target.frames) - 1
    latents = read_frames(history, newest.target.frames)[:1]  # [1, 16, w, h, w]
    places = torch.linspace(min(1, last), last, PICTURES).round().int().tolist()
    return torch.stack([decode(latents[:, :, max(place - 1, 0) : place + 1])[0, -1] for place in places])


def spread(frames: Tensor) -> Tensor:
    """Pictures [3, H, W, 3] of the first film's frames [B, F, H, W, 3], from the first to the last."""
    return frames[0, torch.linspace(0, frames.shape[1] - 1, PICTURES).round().long()]


def _as_made(history: History, count: int) -> History:
    """The history when it had this many sections."""
    places = {history.plan.place(section) for section in history.plan.sections[:count]}
    made = (latents if place in places else None for place, latents in enumerate(history.sections))
    return history._replace(sections=tuple(made))
