"""Which frames each section makes, what it may look at, and where all of them stand for RoPE.

Pure integers, computed once. Two clocks are used:

* film frames: latent frames in film order. Frame 0 is the first generated one, -1 is the start image,
  count * window is the frame after the last one (where an end image stands);
* indices: RoPE frame positions inside one call of the transformer.

The two directions differ in the data made here and nowhere else.
Source of the layouts: FP demo_gradio.py (backward) and demo_gradio_f1.py (forward).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

from .constants import (
    FRAMES_PER_LATENT,
    FRAMES_PER_SECOND,
    HISTORY_FRAMES_1X,
    HISTORY_FRAMES_2X,
    HISTORY_FRAMES_4X,
)

START_FRAME = -1


class Direction(str, Enum):
    """The order in which sections are made: last one first (FramePack) or first one first (F1)."""

    BACKWARD = "backward"
    FORWARD = "forward"


@dataclass(frozen=True)
class Stream:
    """Frames that a section sees at one rate: film frames, and the RoPE indices they get."""

    frames: range
    indices: range


@dataclass(frozen=True)
class Section:
    """One denoising window."""

    number: int  # order of generation
    target: Stream  # what is made
    start_index: int  # RoPE index of the start image
    history_1x: Stream
    history_2x: Stream
    history_4x: Stream


@dataclass(frozen=True)
class SectionPlan:
    """All sections of a film, in the order of generation."""

    direction: Direction
    window: int  # latent frames per section
    sections: tuple[Section, ...]
    neighbour: int  # where a section looks: 1 at the section after it in the film, -1 at the one before

    @property
    def latent_frames(self) -> int:
        """Generated latent frames of the whole film, the start image not counted."""
        return self.window * len(self.sections)

    @property
    def end_frame(self) -> int:
        """Film frame where an end image stands."""
        return self.latent_frames

    @property
    def section_seconds(self) -> float:
        """Length of one section in the film."""
        return self.window * FRAMES_PER_LATENT / FRAMES_PER_SECOND

    def place(self, section: Section) -> int:
        """Number of a section in film order, from 0."""
        return section.target.frames.start // self.window

    def name(self, section: Section) -> str:
        """A section in words for people, numbered in film order as in section prompts."""
        place = self.place(section)
        begin, end = place * self.section_seconds, (place + 1) * self.section_seconds
        return f"section {place} ({begin:.1f} s to {end:.1f} s, made as {section.number + 1} of {len(self.sections)})"


def count_sections(seconds: float, window: int) -> int:
    """Number of sections for a length: round(seconds * 30 / (4 * window)), halves to even, at least 1.

    Source: FP demo_gradio.py. So 3 s at window 9 is 2 sections (2.5 rounds to 2).
    Raises ValueError for a length or window that is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"total_second_length is {seconds}; a film needs a length above 0 seconds.")
    if window < 1:
        raise ValueError(f"latent_window_size is {window}; it must be at least 1 latent frame (9 is usual).")
    return max(round(seconds * FRAMES_PER_SECOND / (FRAMES_PER_LATENT * window)), 1)


def usual_paddings(count: int) -> tuple[int, ...]:
    """Distances to the start image, in sections, that FramePack uses (FP demo_gradio.py, latent_paddings)."""
    if count <= 4:
        return tuple(reversed(range(count)))
    return (3, *[2] * (count - 3), 1, 0)


def plan_backward(count: int, window: int, paddings: Sequence[int] | None = None) -> SectionPlan:
    """Plan of FramePack: the last section is made first, each sees the frames after it.

    paddings: one whole number per section in the order of generation, the last one 0.
    Raises ValueError for another number of paddings, a negative one, or a last one that is not 0.
    """
    paddings = usual_paddings(count) if paddings is None else tuple(paddings)
    _check_paddings(paddings, count)
    sections = []
    for number, padding in enumerate(paddings):
        first = (count - 1 - number) * window
        start, _, target, near, middle, far = _consecutive(1, padding * window, window, *_HISTORY)
        frames = _consecutive(window, *_HISTORY, begin=first)
        sections.append(_section(number, start, zip(frames, (target, near, middle, far), strict=True)))
    return SectionPlan(Direction.BACKWARD, window, tuple(sections), neighbour=1)


def plan_forward(count: int, window: int) -> SectionPlan:
    """Plan of F1: the first section is made first, each sees the frames before it."""
    sections = []
    for number in range(count):
        first = number * window
        start, far, middle, near, target = _consecutive(1, *reversed(_HISTORY), window)
        frames = _consecutive(*reversed(_HISTORY), window, begin=first - sum(_HISTORY))
        by_distance = zip(reversed(frames), (target, near, middle, far), strict=True)
        sections.append(_section(number, start, by_distance))
    return SectionPlan(Direction.FORWARD, window, tuple(sections), neighbour=-1)


def plan_film(direction: Direction, seconds: float, window: int, paddings: Sequence[int] | None = None) -> SectionPlan:
    """Plan of a film of about this many seconds. Raises ValueError as its parts do."""
    count = count_sections(seconds, window)
    if direction is Direction.BACKWARD:
        return plan_backward(count, window, paddings)
    if paddings is not None:
        raise ValueError("latent_paddings belong to backward films; a forward (F1) film has none. Empty the field.")
    return plan_forward(count, window)


_HISTORY = (HISTORY_FRAMES_1X, HISTORY_FRAMES_2X, HISTORY_FRAMES_4X)


def _section(number: int, start: range, streams) -> Section:
    target, near, middle, far = (Stream(frames, indices) for frames, indices in streams)
    return Section(number, target, start.start, near, middle, far)


def _consecutive(*sizes: int, begin: int = 0) -> list[range]:
    edges = list(accumulate(sizes, initial=begin))
    return [range(a, b) for a, b in pairwise(edges)]


def _check_paddings(paddings: tuple[int, ...], count: int) -> None:
    if len(paddings) != count:
        raise ValueError(
            f"latent_paddings has {len(paddings)} entries, but the film has {count} sections; "
            f"give one per section, for example {', '.join(map(str, usual_paddings(count)))}."
        )
    if any(padding < 0 for padding in paddings):
        raise ValueError(f"latent_paddings {list(paddings)} has a negative entry; distances are 0 or more sections.")
    if paddings[-1] != 0:
        raise ValueError(
            f"latent_paddings ends with {paddings[-1]}; the last section made stands at the start image and needs 0."
        )


def parse_paddings(text: str) -> tuple[int, ...] | None:
    """Text "3, 2, 1, 0" -> (3, 2, 1, 0); None for empty text. Raises ValueError for anything but whole numbers."""
    if not text.strip():
        return None
    try:
        return tuple(int(entry) for entry in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"latent_paddings is '{text}'; write whole numbers with commas, as in 3, 2, 1, 0.") from error
