"""Contact sheets: what the films of a row look like, for people."""

from pathlib import Path

import torch
from framepack_pack.tools.demo_world.scene import MOTIONS, SECTION_FRAMES, Scenes
from PIL import Image, ImageDraw
from torch import Tensor

from .films import Prompts
from .measures import judged_motions

_COLUMNS, _FILMS = 12, 8
_CAPTION, _GAP = 14, 4  # pixels
_RIGHT, _WRONG = (90, 90, 90), (200, 0, 0)
_QUALITY = 85  # of the JPEG


def save_sheet(file: Path, scenes: Scenes, prompts: Prompts, frames: Tensor, has_start: bool) -> None:
    """The first films of a batch, a row each: a JPEG, and beside it a text file with their prompts.

    Above a frame stands the motion that its section was asked for; in red, with the judged one, if that differs.
    """
    scenes, frames = scenes[:_FILMS], frames[:_FILMS]
    films, count, height, width = frames.shape[:4]
    judged = judged_motions(scenes, frames, has_start)
    columns = torch.linspace(0, count - 1, _COLUMNS).round().long()
    sheet = Image.new("RGB", (_COLUMNS * (width + _GAP), films * (height + _CAPTION + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for film in range(films):
        for column, place in enumerate(columns.tolist()):
            left, top = column * (width + _GAP), film * (height + _CAPTION + _GAP)
            pixels = (frames[film, place].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            sheet.paste(Image.fromarray(pixels), (left, top + _CAPTION))
            section = max(place + scenes.frames - count - 1, 0) // SECTION_FRAMES
            draw.text((left, top), *_caption(int(scenes.motions[film, section]), int(judged[film, section])))
    sheet.save(file, quality=_QUALITY)
    lines = [f"film {film}, section {k}: {texts[film]}" for film in range(films) for k, texts in enumerate(prompts)]
    file.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _caption(asked: int, judged: int) -> tuple[str, tuple[int, int, int]]:
    if asked == judged:
        return MOTIONS[asked], _RIGHT
    return f"{MOTIONS[asked]} / {MOTIONS[judged]}", _WRONG
