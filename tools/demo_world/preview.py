"""Pictures of the demo world for people: a contact sheet, every row a film, every column a moment of it, or a still."""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .captions import captions
from .render import render
from .sampling import random_scenes
from .scene import SECTION_FRAMES, VARIANTS, Scenes, scene


def contact_sheet(scenes: Scenes, frames: list[int], height: int, width: int, gap: int = 4) -> Tensor:
    """All frames of all films as one picture, uint8 [rows, columns, 3]."""
    films = render(scenes, frames, height, width)  # [B, F, H, W, 3]
    films = torch.nn.functional.pad(films, (0, 0, 0, gap, 0, gap), value=1.0)
    sheet = films.permute(0, 2, 1, 3, 4).reshape(len(scenes) * (height + gap), -1, 3)
    return (sheet.clamp(0, 1) * 255).round().to(torch.uint8)


def still(names: list[str], start: tuple[float, float], seed: int, height: int, width: int) -> Tensor:
    """A start image of (colour, shape, background), uint8 [H, W, 3]; the seed draws the background's variants."""
    colour, shape, background = names
    variant = torch.rand(VARIANTS, generator=torch.Generator().manual_seed(seed)).tolist()
    film = scene(shape, colour, background, ["stays still"], start=start, variant=tuple(variant))
    return contact_sheet(film, [0], height, width, gap=0)


def main() -> None:
    """Draws random films and prints what they show, or draws one start image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="PNG file")
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--sections", type=int, default=3)
    parser.add_argument("--every", type=int, default=9, help="frames between columns")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--still", nargs=3, metavar=("COLOUR", "SHAPE", "BACKGROUND"), help="draw a start image and no sheet"
    )
    parser.add_argument(
        "--at", nargs=2, type=float, default=(0.5, 0.5), help="centre of the still's object: x y, 0 to 1"
    )
    options = parser.parse_args()
    if options.still:
        picture = still(options.still, tuple(options.at), options.seed, options.height, options.width)
        Image.fromarray(picture.numpy()).save(options.output, optimize=True)
        return
    generator = torch.Generator().manual_seed(options.seed)
    scenes = random_scenes(options.films, options.sections, generator)
    for section in range(options.sections):
        for film, text in enumerate(captions(scenes, section, generator)):
            print(f"film {film}, frames {section * SECTION_FRAMES + 1} to {(section + 1) * SECTION_FRAMES}: {text}")
    sheet = contact_sheet(scenes, list(range(0, scenes.frames, options.every)), options.height, options.width)
    Image.fromarray(sheet.numpy()).save(options.output)
