"""A film's sections as a picture: where they lie in time, which is made when, and what prompt holds."""

from collections.abc import Sequence

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..planning.resolve import Span

WIDTH, HEIGHT, MARGIN = 1024, 192, 16
BAR, STRIP, AXIS = (40, 104), (112, 136), 144  # rows of pixels: sections, prompts, seconds
BACKGROUND, INK, FAINT = (24, 26, 30), (236, 238, 240), (120, 126, 134)
MADE, FIRST, LAST = (
    (84, 92, 102),
    (38, 120, 178),
    (196, 108, 44),
)  # colours of sections, from the first made to the last
PROMPTS = ((88, 150, 92), (150, 96, 150), (160, 140, 70), (80, 140, 150), (160, 90, 90))
NARROWEST_LABEL = 7  # pixels a character


def draw_timeline(spans: Sequence[Span], title: str) -> Tensor:
    """IMAGE [1, 192, 1024, 3] of sections in film order."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    scale = (WIDTH - 2 * MARGIN) / spans[-1].frames.stop
    prompts = list(dict.fromkeys(span.prompt for span in spans))

    def label(text: str, left: float, right: float, top: int) -> None:
        if len(text) * NARROWEST_LABEL < right - left:
            draw.text((left + 3, top), text, INK, font)

    draw.text((MARGIN, 14), title, INK, font)
    for span in spans:
        left, right = (MARGIN + scale * frame for frame in (span.frames.start, span.frames.stop))
        colour = MADE if span.done else _between(span.made_as, len(spans))
        end = max(right - 2, left)  # a gap, where sections are wide enough for one
        draw.rectangle((left, BAR[0], end, BAR[1]), colour)
        label(f"{span.place}", left, right, BAR[0] + 8)
        label("made" if span.done else f"as {span.made_as}", left, right, BAR[0] + 40)
        if span.prompt:
            colour = PROMPTS[prompts.index(span.prompt) % len(PROMPTS)]
            draw.rectangle((left, STRIP[0], end, STRIP[1]), colour)
            label(span.prompt, left, right, STRIP[0] + 6)
    for second in _ticks(spans[-1].seconds[1]):
        left = MARGIN + (WIDTH - 2 * MARGIN) * second / spans[-1].seconds[1]
        draw.line((left, AXIS, left, AXIS + 8), FAINT)
        draw.text((min(left - 2, WIDTH - 2 * MARGIN), AXIS + 12), f"{second} s", FAINT, font)
    return torch.from_numpy(numpy.asarray(picture).astype(numpy.float32) / 255).unsqueeze(0)


def _between(made_as: int, count: int) -> tuple[int, ...]:
    """Colour of a section by its place in the order of generation."""
    share = (made_as - 1) / max(count - 1, 1)
    return tuple(round(first + share * (last - first)) for first, last in zip(FIRST, LAST, strict=True))


def _ticks(seconds: float) -> range:
    """Whole seconds with at most 12 marks."""
    step = next(step for step in (1, 2, 5, 10, 30, 60, 300, 600, 3600) if seconds / step <= 12)
    return range(0, int(seconds) + 1, step)
