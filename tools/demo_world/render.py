"""The pixels of the films: the object over its background, with edges of a pixel, at any size.

The object is lit from the upper left, outlined in a darker tone, and wears a face, which shows how it is turned even
on a ball.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .backgrounds import paint_backgrounds
from .motion import State, film_states
from .scene import Scenes, picture_extent
from .shapes import face_distance, shape_distance

PALETTE = (
    (0.89, 0.15, 0.16),  # red
    (1.0, 0.52, 0.05),  # orange
    (1.0, 0.84, 0.1),  # yellow
    (0.13, 0.66, 0.24),  # green
    (0.13, 0.36, 0.93),  # blue
    (0.55, 0.2, 0.77),  # purple
    (1.0, 0.45, 0.7),  # pink
    (0.06, 0.8, 0.82),  # cyan
)  # of COLOURS
DARK, LIGHT = 0.3, 0.25  # how far the shaded side goes to black and the lit one to white
_OUTLINE_WIDTH, _OUTLINE_DARK = 0.09, 0.55
_INK = (0.13, 0.09, 0.15)  # of the face
_GLINT, _GLINT_PLACE, _GLINT_SIZE = 0.55, (-0.38, -0.42), 0.2


_REACH = 1.42  # radii from the centre beyond which no shape goes


class _Spots(NamedTuple):
    """The N pixels at and near the objects; the others are background."""

    film: Tensor  # [N] index
    frame: Tensor  # [N] index
    row: Tensor  # [N] index
    column: Tensor  # [N] index
    x: Tensor  # [N] from the object's centre, in its radii
    y: Tensor  # [N]


class _Layers(NamedTuple):
    """What a pixel is made of, as parts that add up to 1 with white as the rest: each [N]."""

    background: Tensor
    colour: Tensor
    black: Tensor
    ink: Tensor


def render(scenes: Scenes, frames: Tensor | Sequence[int], height: int, width: int) -> Tensor:
    """Frames of every film, RGB 0..1: [B, F, H, W, 3]. Memory is about 40 bytes times B F H W while it works."""
    extent = picture_extent(height, width)
    states = film_states(scenes, frames, extent)
    return draw(scenes, states, paint_backgrounds(scenes, height, width))


def draw(scenes: Scenes, states: State, backgrounds: Tensor) -> Tensor:
    """The objects in these states, of leading shape [B, F], over backgrounds [B, H, W, 3]: [B, F, H, W, 3]."""
    spots = _spots(states, *backgrounds.shape[1:3])
    layers = _layers(scenes, states, spots, 1 / min(backgrounds.shape[1:3]))
    colour = torch.tensor(PALETTE, device=scenes.device)[scenes.colour[spots.film]]  # [N, 3]
    ink = torch.tensor(_INK, device=scenes.device)
    white = 1 - layers.background - layers.colour - layers.black - layers.ink
    behind = backgrounds[spots.film, spots.row, spots.column]  # [N, 3]
    pixels = white[:, None] + layers.background[:, None] * behind + layers.colour[:, None] * colour
    frames = backgrounds[:, None].repeat(1, states.radius.shape[1], 1, 1, 1)
    frames[spots.film, spots.frame, spots.row, spots.column] = pixels + layers.ink[:, None] * ink
    return frames


def wrapped(offset: Tensor, period: float) -> Tensor:
    """The same offset on the torus, at most half a period long."""
    return offset - period * (offset / period).round()


def _spots(states: State, height: int, width: int) -> _Spots:
    """Pixel centres seen from the nearest image of the object on the torus."""
    extent = picture_extent(height, width)
    pixel = 1 / min(height, width)
    columns = (torch.arange(width, device=states.radius.device) + 0.5) * pixel
    rows = (torch.arange(height, device=states.radius.device) + 0.5) * pixel
    radius = states.radius[..., None]
    x = wrapped(columns - states.position[..., :1], extent[0]) / radius  # [B, F, W]
    y = wrapped(rows - states.position[..., 1:], extent[1]) / radius  # [B, F, H]
    reach = (_REACH + pixel / radius)[..., None]
    near = x.square()[..., None, :] + y.square()[..., :, None] < reach.square()  # [B, F, H, W]
    film, frame, row, column = near.nonzero(as_tuple=True)
    return _Spots(film, frame, row, column, x[film, frame, column], y[film, frame, row])


def _layers(scenes: Scenes, states: State, spots: _Spots, pixel: float) -> _Layers:
    """pixel: units."""
    x, y = spots.x, spots.y
    turned_x, turned_y = _turned(x, y, states.angle[spots.film, spots.frame])
    shape = scenes.shape[spots.film]
    fineness = pixel / states.radius[spots.film, spots.frame]  # a pixel in radii
    distance = shape_distance(shape, turned_x, turned_y)
    inside = _edge(distance, fineness)
    outline = inside - _edge(distance + _OUTLINE_WIDTH, fineness)
    ink = _edge(face_distance(shape, turned_x, turned_y), fineness) * inside
    body = inside - outline
    light = -(0.6 * x + 0.8 * y)  # -1 to 1 on a ball
    black = body * (-light).clamp(0, 1) * DARK + outline * _OUTLINE_DARK
    white = body * (light.clamp(0, 1) * LIGHT + _glint(x, y))
    black, white = ((1 - ink / inside.clamp(min=1e-4)) * part for part in (black, white))
    return _Layers(1 - inside, inside - ink - black - white, black, ink)


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in the object's own axes, which are turned clockwise by the angle."""
    cosine, sine = angle.cos(), angle.sin()
    return x * cosine + y * sine, y * cosine - x * sine


def _edge(distance: Tensor, pixel: Tensor) -> Tensor:
    """1 inside, 0 outside, smooth over about a pixel and a half."""
    place = (0.5 - distance / (1.5 * pixel)).clamp(0, 1)
    return place * place * (3 - 2 * place)


def _glint(x: Tensor, y: Tensor) -> Tensor:
    """A soft bright spot towards the light."""
    across = torch.exp(-(((x - _GLINT_PLACE[0]) / _GLINT_SIZE) ** 2))
    down = torch.exp(-(((y - _GLINT_PLACE[1]) / _GLINT_SIZE) ** 2))
    return _GLINT * across * down
