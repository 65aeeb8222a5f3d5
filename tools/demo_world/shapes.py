"""The shapes, as signed distances, and the face that each wears.

A shape of radius 1 is centred on its centre of area. Distances are negative inside. One formula serves ball, square,
triangle and star: a star of n points whose edges run from an outer to an inner radius, rounded; the heart is a pair
of cones with round ends.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .scene import SHAPES


class _Points(NamedTuple):
    """A star of n points; all lengths in units of the object's radius."""

    count: int
    outer: float
    inner: float
    rounding: float
    tilt: float = 0.0  # of the first corner from straight up


class _Face(NamedTuple):
    """Where the face sits and how large it is."""

    y: float
    scale: float


_POINTS = {
    "ball": _Points(4, 0.0, 0.0, 1.0),
    "square": _Points(4, 1.06, 1.06 * math.cos(math.pi / 4), 0.16, math.pi / 4),
    "triangle": _Points(3, 1.2, 1.2 * math.cos(math.pi / 3), 0.18),
    "star": _Points(5, 1.14, 0.6, 0.12),
    "heart": _Points(4, 0.0, 0.0, 1.0),  # not used
}
_HEART_TIP, _HEART_LOBE = (0.0, 1.114), (0.5, -0.226)
_HEART_ROUNDING = (0.06, 0.56)
_FACES = {
    "ball": _Face(0.0, 1.0),
    "square": _Face(0.0, 0.95),
    "triangle": _Face(0.05, 0.8),
    "star": _Face(0.02, 0.92),
    "heart": _Face(-0.14, 0.95),
}
_EYE_X, _EYE_Y = 0.3, -0.16
_EYE_RADII = (0.135, 0.19)
_SMILE_Y, _SMILE_RADIUS, _SMILE_WIDTH = 0.04, 0.34, 0.08
_SMILE_REACH = math.radians(62)  # to each side of straight down


def shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the outline in radii. shape: [B]; x, y: [B, ...] in radii, turned with the object."""
    heart = (shape == SHAPES.index("heart")).view(-1, *(1,) * (x.dim() - 1))
    return torch.where(heart, _heart(x, y), _star(shape, x, y))


def face_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the nearest of two eyes and a smile, roughly, in radii; arguments as for shape_distance."""
    y_offset, scale = _column(shape, [_FACES[name] for name in SHAPES], x.dim())
    x, y = x.abs() / scale, (y - y_offset) / scale
    eye = torch.hypot((x - _EYE_X) / _EYE_RADII[0], (y - _EYE_Y) / _EYE_RADII[1])
    eye = (eye - 1) * _EYE_RADII[0]
    end_x, end_y = _SMILE_RADIUS * math.sin(_SMILE_REACH), _SMILE_RADIUS * math.cos(_SMILE_REACH)
    y = y - _SMILE_Y
    on_arc = x * end_y < y * end_x  # between the two ends, seen from the arc's centre
    smile = torch.where(on_arc, (torch.hypot(x, y) - _SMILE_RADIUS).abs(), torch.hypot(x - end_x, y - end_y))
    return torch.minimum(eye, smile - _SMILE_WIDTH) * scale


def outline_profile(angles: int, device: torch.device | str = "cpu", steps: int = 128) -> Tensor:
    """How far each shape reaches in each direction, in radii: [shapes, angles], clockwise from the right."""
    angle = torch.arange(angles, device=device) * (2 * math.pi / angles)
    reach = torch.linspace(0, 1.6, steps, device=device)
    shape = torch.arange(len(SHAPES), device=device)
    x, y = (reach * way[:, None] for way in (angle.cos(), angle.sin()))  # [angles, steps]
    size = (len(SHAPES), angles, steps)
    inside = shape_distance(shape, x.expand(size), y.expand(size)) < 0
    return (inside * reach).amax(-1)


def area_radius(device: torch.device | str = "cpu", cells: int = 256) -> Tensor:
    """sqrt(area) of each shape of radius 1: [shapes]."""
    line = (torch.arange(cells, device=device) + 0.5) / cells * 3.2 - 1.6
    size = (len(SHAPES), cells, cells)
    shape = torch.arange(len(SHAPES), device=device)
    inside = shape_distance(shape, line.expand(size), line[:, None].expand(size)) < 0
    return inside.float().mean((1, 2)).sqrt() * 3.2


def _star(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    count, outer, inner, rounding, tilt = _column(shape, [_POINTS[name] for name in SHAPES], x.dim())
    half = math.pi / count
    angle = torch.atan2(x, -y) - tilt  # from a corner
    angle = (angle - 2 * half * (angle / (2 * half)).round()).abs()
    reach = torch.hypot(x, y)
    along, across = reach * angle.cos(), reach * angle.sin()
    edge_x, edge_y = inner * half.cos() - outer, inner * half.sin()  # from the outer corner (outer, 0)
    from_x = along - outer
    place = (from_x * edge_x + across * edge_y) / (edge_x**2 + edge_y**2).clamp(min=1e-9)
    place = place.clamp(0, 1)
    distance = torch.hypot(from_x - place * edge_x, across - place * edge_y)
    inside = from_x * edge_y < across * edge_x
    return torch.where(inside, -distance, distance) - rounding


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Cone from the tip to one lobe; the fold at x = 0 makes the pair.

    Of the cone only the part at x > 0 is outline: points that would see the rest of it see the notch instead.
    """
    tip, lobe = _HEART_ROUNDING
    lobe_x, lobe_y = _HEART_LOBE
    length = math.dist(_HEART_TIP, _HEART_LOBE)
    axis_x, axis_y = ((b - a) / length for a, b in zip(_HEART_TIP, _HEART_LOBE, strict=True))
    slope = (tip - lobe) / length  # sine of the side's tilt against the axis
    cosine = math.sqrt(1 - slope**2)
    x = x.abs()
    tip_y = y - _HEART_TIP[1]
    along, outwards = x * axis_x + tip_y * axis_y, tip_y * axis_x - x * axis_y
    place = along * cosine - outwards.abs() * slope  # along the side
    side = along * slope + outwards * cosine - tip
    to_lobe = torch.hypot(x - lobe_x, y - lobe_y)
    cap = place > length * cosine
    distance = torch.where(place < 0, torch.hypot(along, outwards) - tip, side)
    distance = torch.where(cap, to_lobe - lobe, distance)
    inner = torch.where(cap, (lobe_x - x) * lobe > lobe_x * to_lobe, (outwards < 0) & (place > 0))
    notch = torch.hypot(x, y - (lobe_y - math.sqrt(lobe**2 - lobe_x**2)))
    return torch.where(inner, torch.maximum(-notch, side.clamp(max=0)), distance)


def _column(shape: Tensor, rows: list[tuple[float, ...]], dims: int) -> tuple[Tensor, ...]:
    """Each column of a table for each film, ready to broadcast: [B, 1, ...]."""
    table = torch.tensor(rows, device=shape.device, dtype=torch.float32)[shape]
    return tuple(column.view(-1, *(1,) * (dims - 1)) for column in table.unbind(1))
