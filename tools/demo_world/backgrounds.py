"""The still pictures behind the object: plain ones, a gradient, a meadow, a beach, a night.

Colours are paler than the object's, so that it stands out. Everything is drawn from coordinates with soft edges of a
pixel, hence for any size; three free numbers of each film vary tint, layout and where the sun or the moon is.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .scene import BACKGROUNDS, Scenes, picture_extent

# as parts of width and height
# fmt: off
_STARS = (
    (0.06, 0.11), (0.13, 0.37), (0.22, 0.2), (0.31, 0.07), (0.37, 0.46), (0.45, 0.25), (0.52, 0.1), (0.58, 0.52),
    (0.64, 0.31), (0.71, 0.14), (0.79, 0.44), (0.86, 0.24), (0.93, 0.55), (0.96, 0.08),
)
_FLOWERS = (
    (0.07, 0.93), (0.16, 0.8), (0.24, 0.95), (0.33, 0.86), (0.44, 0.94), (0.53, 0.82), (0.62, 0.91), (0.71, 0.84),
    (0.8, 0.95), (0.87, 0.81), (0.95, 0.9),
)
# fmt: on


class _Canvas(NamedTuple):
    """Coordinates of the pixels' centres, and what the backgrounds vary by."""

    x: Tensor  # [1, 1, W] units
    y: Tensor  # [1, H, 1] units
    width: float  # units
    height: float  # units
    pixel: float  # units
    variant: tuple[Tensor, ...]  # each [B, 1, 1], 0..1


def paint_backgrounds(scenes: Scenes, height: int, width: int) -> Tensor:
    """RGB pictures 0..1 without the object: [B, H, W, 3]."""
    extent = picture_extent(height, width)
    pixel = extent[0] / width
    x = (torch.arange(width, device=scenes.device) + 0.5) * pixel
    y = (torch.arange(height, device=scenes.device) + 0.5) * pixel
    picture = torch.empty(len(scenes), height, width, 3, device=scenes.device)
    painters = (_white, _black, _grey, _gradient, _meadow, _beach, _night)
    for index, (_, painter) in enumerate(zip(BACKGROUNDS, painters, strict=True)):
        films = (scenes.background == index).nonzero().flatten()
        if len(films):
            variant = tuple(value.view(-1, 1, 1) for value in scenes.variant[films].unbind(1))
            picture[films] = painter(_Canvas(x.view(1, 1, -1), y.view(1, -1, 1), *extent, pixel, variant))
    return picture


def _white(canvas: _Canvas) -> Tensor:
    return _grey_level(0.94 + 0.05 * canvas.variant[0])


def _black(canvas: _Canvas) -> Tensor:
    return _grey_level(0.02 + 0.05 * canvas.variant[0])


def _grey(canvas: _Canvas) -> Tensor:
    return _grey_level(0.46 + 0.12 * canvas.variant[0])


def _gradient(canvas: _Canvas) -> Tensor:
    """Two pastel tints that blend along a slanted line."""
    tint, slant, spread = canvas.variant
    tilt = (slant - 0.5) * 1.5
    place = (canvas.y / canvas.height - 0.5) * tilt.cos() + (canvas.x / canvas.width - 0.5) * tilt.sin() + 0.5
    phase = tint + (0.2 + 0.3 * spread) * place
    channels = [0.82 + 0.11 * torch.cos(2 * math.pi * (phase + shift)) for shift in (0.0, 1 / 3, 2 / 3)]
    return torch.stack(channels, -1)


def _meadow(canvas: _Canvas) -> Tensor:
    """Pale sky with sun and clouds, two hills, a few flowers."""
    tint, layout, sun = canvas.variant
    picture = _blend(_rgb(canvas, 0.58, 0.79, 0.95), _rgb(canvas, 0.9, 0.95, 0.98), canvas.y / canvas.height * 1.6)
    sun_x, sun_y = (0.12 + 0.76 * sun) * canvas.width, 0.17 * canvas.height
    picture = _over(picture, (1.0, 0.95, 0.72), _disc(canvas, sun_x, sun_y, 0.085))
    for x, y, size in ((0.1, 0.2, 0.08), (0.6, 0.34, 0.1)):
        picture = _over(picture, (0.98, 0.98, 1.0), _cloud(canvas, (x + 0.3 * layout) * canvas.width, y, size))
    far = (0.63 + 0.05 * torch.sin(3.1 * canvas.x + 6 * layout)) * canvas.height
    near = (0.76 + 0.045 * torch.sin(2.3 * canvas.x + 2.0 + 5 * tint)) * canvas.height
    picture = _over(picture, (0.66, 0.83, 0.58), _below(canvas, far))
    picture = _over(picture, (0.55, 0.75, 0.46), _below(canvas, near))
    for kind, petal in enumerate(((0.97, 0.86, 0.6), (0.98, 0.97, 0.9))):
        flowers = [_disc(canvas, x * canvas.width, y * canvas.height, 0.012) for x, y in _FLOWERS[kind::2]]
        picture = _over(picture, petal, torch.stack(flowers).amax(0))
    return picture


def _beach(canvas: _Canvas) -> Tensor:
    """Bright sky with the sun, the sea, a line of foam, sand."""
    tint, layout, sun = canvas.variant
    picture = _blend(_rgb(canvas, 0.66, 0.85, 0.96), _rgb(canvas, 0.97, 0.93, 0.86), canvas.y / canvas.height * 2.2)
    sun_x = (0.12 + 0.76 * sun) * canvas.width
    picture = _over(picture, (1.0, 0.93, 0.66), _disc(canvas, sun_x, 0.2 * canvas.height, 0.09))
    horizon = (0.43 + 0.06 * tint) * canvas.height
    sea = _blend(_rgb(canvas, 0.36, 0.62, 0.74), _rgb(canvas, 0.56, 0.8, 0.82), (canvas.y - horizon) * 3)
    picture = _mix(picture, sea, _below(canvas, horizon))
    shore = (0.69 + 0.035 * torch.sin(4.0 * canvas.x + 6 * layout)) * canvas.height
    picture = _over(picture, (0.96, 0.97, 0.96), _below(canvas, shore - 0.022))
    sand = _blend(_rgb(canvas, 0.87, 0.79, 0.62), _rgb(canvas, 0.94, 0.87, 0.72), (canvas.y - shore) * 3)
    return _mix(picture, sand, _below(canvas, shore + 0.012))


def _night(canvas: _Canvas) -> Tensor:
    """Dark sky with stars and a crescent moon above a hill."""
    tint, layout, moon = canvas.variant
    picture = _blend(_rgb(canvas, 0.05, 0.06, 0.16), _rgb(canvas, 0.15, 0.15, 0.3), canvas.y / canvas.height * 1.3)
    stars = [
        _disc(canvas, ((x + layout) % 1) * canvas.width, y * canvas.height, 0.006 + 0.004 * (number % 2))
        for number, (x, y) in enumerate(_STARS)
    ]
    x, y = (0.14 + 0.72 * moon) * canvas.width, 0.18 * canvas.height
    full_moon = _disc(canvas, x, y, 0.085)
    picture = _over(picture, (0.8, 0.82, 0.9), torch.stack(stars).amax(0) * (1 - full_moon))
    crescent = full_moon * (1 - _disc(canvas, x + 0.038, y - 0.022, 0.07))
    picture = _over(picture, (0.95, 0.93, 0.8), crescent)
    hill = (0.82 + 0.05 * torch.sin(2.6 * canvas.x + 6 * tint)) * canvas.height
    return _over(picture, (0.07, 0.1, 0.15), _below(canvas, hill))


def _grey_level(level: Tensor) -> Tensor:
    return level[..., None].expand(*level.shape, 3)


def _rgb(canvas: _Canvas, *colour: float) -> Tensor:
    return torch.tensor(colour, device=canvas.x.device)


def _blend(first: Tensor, last: Tensor, place: Tensor) -> Tensor:
    """From one colour to another as place goes from 0 to 1: [..., 3]."""
    return torch.lerp(first, last, place.clamp(0, 1)[..., None])


def _mix(picture: Tensor, other: Tensor, cover: Tensor) -> Tensor:
    return picture + (other - picture) * cover[..., None]


def _over(picture: Tensor, colour: tuple[float, ...], cover: Tensor) -> Tensor:
    return _mix(picture, torch.tensor(colour, device=cover.device), cover)


def _below(canvas: _Canvas, line: Tensor | float) -> Tensor:
    """1 under a line of the picture, 0 above."""
    return ((canvas.y - line) / canvas.pixel + 0.5).clamp(0, 1)


def _disc(canvas: _Canvas, x: Tensor | float, y: Tensor | float, radius: float) -> Tensor:
    """Round; a disc smaller than a pixel fades instead of flickering."""
    distance = torch.hypot(canvas.x - x, canvas.y - y)
    small = min(1.0, 2 * radius / canvas.pixel)
    return ((radius - distance) / canvas.pixel + 0.5).clamp(0, 1) * small


def _cloud(canvas: _Canvas, x: Tensor, y: float, size: float) -> Tensor:
    """Three soft puffs."""
    left = torch.exp(-(((canvas.x - x + size) / size) ** 2) - ((canvas.y / canvas.height - y) / size * 2.2) ** 2)
    right = torch.exp(-(((canvas.x - x - size) / size) ** 2) - ((canvas.y / canvas.height - y) / size * 2.2) ** 2)
    top = torch.exp(-(((canvas.x - x) / size) ** 2) - ((canvas.y / canvas.height - y + size * 0.25) / size * 1.6) ** 2)
    return ((left + right + top) * 1.5 - 0.2).clamp(0, 0.9)
