"""Draws the pictures that stand for the example workflows in ComfyUI's template browser: `example_workflows/*.jpg`.

Each is a strip of film with a ball that bounces across it, and under it the sections in the order in which the
workflow makes them. Needs Pillow: `.venv/bin/python tools/draw_thumbnails.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
SIZE = (640, 360)
SCALE = 2  # drawn larger and reduced, which smooths the edges
FRAMES = 9
SECTIONS = 4

BACKGROUND, FILM, HOLE = (24, 28, 36), (8, 9, 12), (52, 60, 76)
SKY, MEADOW, BALL, TEXT = (150, 200, 240), (90, 160, 70), (205, 55, 45), (235, 238, 245)
SECTION_COLOURS = ((63, 120, 158), (84, 142, 176), (105, 163, 193), (128, 185, 210))
START_COLOUR = (214, 170, 70)


class Thumbnail(NamedTuple):
    """One picture: its title, the number of each section in the order of making, and what the film starts from."""

    title: str
    order: tuple[int, ...]
    start: str
    wired: bool = False


THUMBNAILS = {
    "image_to_video": Thumbnail("FramePack: image to video", (4, 3, 2, 1), "image"),
    "forward": Thumbnail("FramePack F1: image to video", (1, 2, 3, 4), "image"),
    "text_to_video": Thumbnail("FramePack: text to video", (4, 3, 2, 1), "text"),
    "demo_image_to_video": Thumbnail("FramePack demo: image to video", (3, 2, 1), "image"),
    "demo_forward": Thumbnail("FramePack demo: F1", (1, 2, 3), "image"),
    "demo_text_to_video": Thumbnail("FramePack demo: text to video", (3, 2, 1), "text"),
    "hand_wired_sections": Thumbnail("FramePack: sections wired by hand", (2, 1), "image", wired=True),
}


def draw(thumbnail: Thumbnail) -> Image.Image:
    """The finished picture."""
    picture = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    _text(pen, thumbnail.title, (320, 42), 26)
    _strip(pen, has_image=thumbnail.start == "image")
    _sections(pen, thumbnail)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def _strip(pen: ImageDraw.ImageDraw, has_image: bool) -> None:
    _box(pen, (0, 88, 640, 208), FILM)
    for hole in range(0, 640, 20):
        _box(pen, (hole + 5, 94, hole + 14, 102), HOLE)
        _box(pen, (hole + 5, 194, hole + 14, 202), HOLE)
    for frame in range(FRAMES):
        left = 8 + frame * 70
        _box(pen, (left, 108, left + 64, 188), SKY)
        _box(pen, (left, 164, left + 64, 188), MEADOW)
        height = abs(math.cos(frame * math.pi / 4)) * 34
        x, y = left + 14 + frame * 4.5, 160 - height
        _ellipse(pen, (x - 10, y - 10, x + 10, y + 10), BALL)
        _ellipse(pen, (x - 6, y - 6, x - 1, y - 1), (255, 205, 195))
        if frame == 0 and has_image:
            pen.rectangle([SCALE * value for value in (left - 3, 105, left + 66, 190)], outline=START_COLOUR, width=8)


def _sections(pen: ImageDraw.ImageDraw, thumbnail: Thumbnail) -> None:
    if thumbnail.start == "image":
        _box(pen, (8, 222, 72, 252), START_COLOUR)
        _text(pen, "image", (40, 237), 15, BACKGROUND)
    begin = 78 if thumbnail.start == "image" else 8
    width = (632 - begin + 6) / len(thumbnail.order)
    for place, number in enumerate(thumbnail.order):
        left = begin + place * width
        _box(pen, (left, 222, left + width - 6, 252), SECTION_COLOURS[number - 1])
        _text(pen, ("1st", "2nd", "3rd", "4th")[number - 1], (left + width / 2 - 3, 237), 15, BACKGROUND)
        if thumbnail.wired:
            _wire(pen, left, width)
    if not thumbnail.wired:
        backward = thumbnail.order[0] > thumbnail.order[-1]
        _arrow(pen, (600, begin + 30) if backward else (begin + 30, 600), 286)
        _text(pen, "made from the end to the start" if backward else "made from the start to the end", (320, 318), 18)


def _wire(pen: ImageDraw.ImageDraw, left: float, width: float) -> None:
    """Three little nodes below a section: what it sees, sampling, the film with it."""
    step = (width - 6) / 3
    for number, label in enumerate(("apply", "sample", "append")):
        x = left + number * step
        if number:
            _arrow(pen, (x - 14, x + 8), 296)
        _box(pen, (x + 8, 280, x + step - 14, 312), HOLE)
        _text(pen, label, (x + (step - 6) / 2, 296), 14)


def _arrow(pen: ImageDraw.ImageDraw, ends: tuple[float, float], y: float) -> None:
    tail, head = ends
    back = 12 if head < tail else -12
    pen.line([SCALE * value for value in (tail, y, head + back / 2, y)], fill=TEXT, width=2 * SCALE)
    points = ((head, y), (head + back, y - 6), (head + back, y + 6))
    pen.polygon([(SCALE * x, SCALE * y) for x, y in points], fill=TEXT)


def _box(pen: ImageDraw.ImageDraw, edges: tuple[float, ...], colour: tuple[int, ...]) -> None:
    pen.rounded_rectangle([SCALE * value for value in edges], radius=4 * SCALE, fill=colour)


def _ellipse(pen: ImageDraw.ImageDraw, edges: tuple[float, ...], colour: tuple[int, ...]) -> None:
    pen.ellipse([SCALE * value for value in edges], fill=colour)


def _text(
    pen: ImageDraw.ImageDraw, text: str, middle: tuple[float, float], size: int, colour: tuple[int, ...] = TEXT
) -> None:
    x, y = middle
    pen.text((SCALE * x, SCALE * y), text, font=ImageFont.load_default(size * SCALE), fill=colour, anchor="mm")


def main() -> None:
    """Writes all pictures."""
    for name, thumbnail in THUMBNAILS.items():
        path = FOLDER / f"{name}.jpg"
        draw(thumbnail).save(path, quality=88, optimize=True)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
