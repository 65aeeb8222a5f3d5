"""What a film shows of its object: where its pixels are, where its centre goes, how large it is, how it is turned.

Works on true and on generated frames: pixels count by how close they are to the tones of the object's colour and, if
the background is known, how far from that. All lengths are in units of the picture's short side.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .render import DARK, LIGHT, PALETTE, wrapped
from .scene import picture_extent

_TONES = (0.06, 0.16)  # RGB distance up to which a pixel is the colour's, and from which it is not
_BACKDROP = (0.08, 0.2)  # RGB distance up to which a pixel is the background's, and from which it is not
# sqrt(area) of what the mask holds of an object of radius 1 [measured]: the outline is partly in it where the
# background is known, and the glint is not where it is unknown
_BODY, _BODY_ALONE = 1.7, 1.47
_INK = (0.3, 0.6)  # brightness, as a part of the colour's, of the face's ink and of the darkest tone
_FACE_RINGS = (0.1, 0.54)  # radii of the face, inside every shape
_CORNER_RINGS = (0.8, 1.2)  # radii that only corners reach
_RINGS, _ANGLES, _WAVES = 8, 64, 16  # rings of each kind, samples on each, and their frequencies that are kept


class Track(NamedTuple):
    """The object in F frames of B films."""

    position: Tensor  # [B, F, 2] path of the centre from the first frame on; continuous over the edges
    radius: Tensor  # [B, F]
    texture: Tensor  # [B, F, rings, waves] how its face and corners lie around its centre, over the angle; complex


def tone_distance(pixels: Tensor, colour: Tensor) -> Tensor:
    """RGB distance to the nearest tone, from shaded to lit. pixels: [B, ..., 3]; colour: [B] index; result [B, ...]."""
    plain = torch.tensor(PALETTE, device=pixels.device, dtype=pixels.dtype)[colour]  # [B, 3]
    plain = plain.view(-1, *(1,) * (pixels.dim() - 2), 3)
    offset = pixels - plain
    shaded = _segment_distance(offset, -DARK * plain)
    return torch.minimum(shaded, _segment_distance(offset, LIGHT * (1 - plain)))


def object_mask(frames: Tensor, colour: Tensor, background: Tensor | None = None) -> Tensor:
    """How much each pixel is the object's: 0..1, [B, F, H, W].

    frames: [B, F, H, W, 3]; colour: [B] index; background: [B, H, W, 3], None for unknown. The dark outline and the
    face do not count.
    """
    from_colour = tone_distance(frames, colour)
    if background is None:
        return 1 - _ramp(from_colour, *_TONES)
    from_background = (frames - background[:, None]).square().sum(-1).sqrt()
    likely = from_background**4 / (from_background**4 + from_colour**4 + 1e-9)  # steep, so that noise adds up to little
    return likely * _ramp(from_background, *_BACKDROP)


def track_object(frames: Tensor, colour: Tensor, background: Tensor | None = None) -> Track:
    """Follows the object; arguments as for object_mask."""
    mask = object_mask(frames, colour, background)
    extent = picture_extent(*mask.shape[2:])
    centre = mask_centre(mask)
    steps = centre.diff(dim=1)
    steps = torch.stack([wrapped(steps[..., axis], extent[axis]) for axis in (0, 1)], -1)
    path = torch.cat([torch.zeros_like(centre[:, :1]), steps.cumsum(1)], 1)
    radius = mask_size(mask) / (_BODY_ALONE if background is None else _BODY)
    return Track(path, radius, _texture(frames, colour, mask, centre, radius))


def mask_centre(mask: Tensor) -> Tensor:
    """Centre of a mask on the torus: [B, F, 2] in units, from the upper left corner."""
    extent = picture_extent(*mask.shape[2:])
    centres = [_ring_mean(mask.sum(dim)) * length for dim, length in zip((2, 3), extent, strict=True)]
    return torch.stack(centres, -1)


def mask_size(mask: Tensor) -> Tensor:
    """sqrt of a mask's area: [B, F] in units; at least a pixel's."""
    width, height = picture_extent(*mask.shape[2:])
    return (mask.mean((2, 3)) * width * height).sqrt().clamp(min=1 / min(mask.shape[2:]))


def polar(mask: Tensor, centre: Tensor, radii: Tensor, angles: int) -> Tensor:
    """The mask on rings around the centre, clockwise from the right.

    mask: [B, F, H, W]; centre: [B, F, 2] units; radii: [B, F, R] units; result [B, F, R, angles].
    """
    pixel = 1 / min(mask.shape[2:])
    angle = torch.arange(angles, device=mask.device) * (2 * math.pi / angles)
    x = (centre[..., 0, None, None] + radii[..., None] * angle.cos()) / pixel - 0.5
    y = (centre[..., 1, None, None] + radii[..., None] * angle.sin()) / pixel - 0.5
    left, top = x.floor(), y.floor()
    right_part, bottom_part = x - left, y - top
    rows = [torch.lerp(_pixels(mask, left, row), _pixels(mask, left + 1, row), right_part) for row in (top, top + 1)]
    return torch.lerp(*rows, bottom_part)


def _texture(frames: Tensor, colour: Tensor, mask: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Waves over the angle of the face's ink and of the corners; glint, shade and background do not count."""
    plain = torch.tensor(PALETTE, device=frames.device).amax(1)[colour].view(-1, 1, 1, 1)
    ink = 1 - _ramp(frames.amax(-1) / plain, *_INK)
    waves = []
    for field, (low, high), lowest in ((ink, _FACE_RINGS, 1), (mask, _CORNER_RINGS, 2)):
        reach = torch.linspace(low, high, _RINGS, device=frames.device)
        around = polar(field, centre, radius[..., None] * reach, _ANGLES)
        around = torch.fft.rfft(around * reach[:, None].sqrt())  # each ring counts by its area
        around[..., :lowest] = 0  # the mean; of the corners also what a centre that is a little off looks like
        waves.append(around[..., 1 : _WAVES + 1])
    return torch.cat(waves, 2)


def _pixels(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """mask[y, x] for whole numbers that may lie beyond the edges: the torus."""
    height, width = mask.shape[2:]
    index = (y % height) * width + x % width  # [B, F, R, A]
    return mask.flatten(2).gather(2, index.long().flatten(2)).view(index.shape)


def _ring_mean(weights: Tensor) -> Tensor:
    """Mean place of weights [B, F, n] around a ring, 0..1: the angle of their sum as points on a circle."""
    count = weights.shape[-1]
    angle = (torch.arange(count, device=weights.device) + 0.5) * (2 * math.pi / count)
    return torch.atan2((weights * angle.sin()).sum(-1), (weights * angle.cos()).sum(-1)) / (2 * math.pi) % 1


def _segment_distance(offset: Tensor, way: Tensor) -> Tensor:
    """Distance of points [..., 3] from the segment between 0 and way."""
    place = (offset * way).sum(-1, keepdim=True) / way.square().sum(-1, keepdim=True)
    return (offset - place.clamp(0, 1) * way).square().sum(-1).sqrt()


def _ramp(value: Tensor, low: float, high: float) -> Tensor:
    return ((value - low) / (high - low)).clamp(0, 1)
