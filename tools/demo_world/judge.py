"""Names what a film shows, true or generated: the motion of a section, the object's colour, its shape.

This is the judge of the tests of meaning. It sees frames and, where it is known, the picture behind the object; it
is not told what the film should show.
"""

import torch
from torch import Tensor

from .measure import Track, mask_centre, mask_size, object_mask, polar, tone_distance, track_object
from .motion import State, moved
from .scene import COLOURS, MOTIONS, picture_extent
from .shapes import outline_profile

_PATH_ERROR = 0.04  # units that count as one
_SIZE_ERROR = 0.05  # of the logarithm of the radius, that counts as one
_TURN_WEIGHT = 6.0  # of a face that is nowhere where the motion turns it
_INTERVALS = 12  # between the frames that a motion is read from: four to a hop
_NEAR_TONE = 0.15  # RGB distance within which a pixel votes for a colour
_ANGLES, _RINGS = 64, 48
_REACH = 1.1  # of the rings, in units of sqrt(area): past the corners of a triangle
_LOOKS = 9  # frames that colour and shape are read from
_COLOUR_SIDE = 64  # pixels of the short side, about, that vote for a colour


def judge_motion(
    frames: Tensor, background: Tensor | None = None, colour: Tensor | None = None, begin: float = 0.0
) -> Tensor:
    """The motion that a section comes nearest to: [B] index into MOTIONS.

    frames: [B, F, H, W, 3] 0..1, evenly spaced from the frame that the section starts with to its last one, as
    section_frames lists them; background: [B, H, W, 3] as paint_backgrounds gives it, None for unknown; colour: [B]
    index, None to judge it first; begin: the part of the section that is missing before the first frame (a film without
    a start image lacks some). Only changes since the first frame count, so earlier drift does not matter.
    """
    if colour is None:
        colour = judge_colour(frames, background)
    intervals = frames.shape[1] - 1
    stride = max(intervals // _INTERVALS, 1) if intervals % _INTERVALS == 0 else 1
    track = track_object(frames[:, ::stride], colour, background)
    return motion_costs(track, begin, picture_extent(*frames.shape[2:4])).argmin(1)


def motion_costs(track: Track, begin: float = 0.0, extent: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """How far a track is from that of each motion, from its part begin on: [B, M]; 1 is a clear departure."""
    films, count = track.radius.shape
    device = track.radius.device
    time = torch.linspace(begin, 1, count, device=device)
    motion = torch.arange(len(MOTIONS), device=device).view(1, -1, 1)
    radius = track.radius[:, :1, None]
    start = State(torch.zeros(films, 1, 1, 2, device=device), radius, torch.zeros_like(radius))
    truth = moved(start, motion, time, extent)  # [B, M, F]
    way, angle = truth.position - truth.position[:, :, :1], truth.angle - truth.angle[:, :, :1]
    path = (track.position[:, None] - way).square().sum(-1).mean(-1) / _PATH_ERROR**2
    size = (track.radius[:, None].log() - truth.radius.log()).square().mean(-1) / _SIZE_ERROR**2
    return path + size + _TURN_WEIGHT * (1 - turn_agreement(track, angle))


def turn_agreement(track: Track, angle: Tensor) -> Tensor:
    """Correlation of the texture with that of the first frame turned by these angles, mean over frames: [B, M].

    angle: [B or 1, M, F] radians since the first frame.
    """
    first, texture = track.texture[:, :1], track.texture  # [B, F, rings, waves]
    wave = torch.arange(1, texture.shape[-1] + 1, device=angle.device)
    products = (texture * first.conj()).sum(2)  # [B, F, waves]
    energy = (texture.abs().square().sum((2, 3)) * first.abs().square().sum((2, 3))).sqrt()  # [B, F]
    turned = (products[:, None] * torch.polar(torch.ones_like(wave * angle[..., None]), wave * angle[..., None])).real
    return (turned.sum(-1) / energy[:, None].clamp(min=1e-9)).mean(-1)


def judge_colour(frames: Tensor, background: Tensor | None = None) -> Tensor:
    """The object's colour: [B] index into COLOURS; every pixel votes for the tones that it is nearest to.

    frames: [B, F, H, W, 3]; background as for judge_motion.
    """
    step = max(min(frames.shape[2:4]) // _COLOUR_SIDE, 1)
    frames = _some(frames)[:, :, ::step, ::step]
    every = torch.arange(len(COLOURS), device=frames.device)
    distance = torch.stack(
        [tone_distance(frames, colour.expand(len(frames))) for colour in every], -1
    )  # [B, F, H, W, C]
    votes = (1 - distance / _NEAR_TONE).clamp(min=0) * (distance == distance.amin(-1, keepdim=True))
    if background is not None:
        background = background[:, None, ::step, ::step]
        votes = votes * (frames - background).square().sum(-1, keepdim=True).sqrt()
    return votes.sum((1, 2, 3)).argmax(1)


def judge_shape(frames: Tensor, background: Tensor | None = None, colour: Tensor | None = None) -> Tensor:
    """The object's shape, however it is turned: [B] index into SHAPES. Arguments as for judge_motion."""
    frames = _some(frames)
    if colour is None:
        colour = judge_colour(frames, background)
    mask = object_mask(frames, colour, background)
    reach = torch.linspace(0, _REACH, _RINGS, device=frames.device)
    around = polar(mask, mask_centre(mask), mask_size(mask)[..., None] * reach, _ANGLES)
    profile = ((around > 0.5) * reach[:, None]).amax(2)  # [B, F, A], over the holes of the face
    return shape_agreement(profile).mean(1).argmax(1)


def shape_agreement(profile: Tensor) -> Tensor:
    """Best correlation, over all turns, of outlines [B, F, A] with that of each shape: [B, F, shapes]."""
    found, known = (_normal(outline) for outline in (profile, outline_profile(_ANGLES, profile.device)))
    return torch.fft.irfft(torch.fft.rfft(found)[:, :, None] * torch.fft.rfft(known).conj()).amax(-1)


def _normal(outline: Tensor) -> Tensor:
    """Of unit length, so that size does not count."""
    return outline / outline.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-9)


def _some(frames: Tensor) -> Tensor:
    """At most _LOOKS frames, about evenly spaced."""
    count = frames.shape[1]
    return frames[:, torch.linspace(0, count - 1, min(count, _LOOKS)).round().long()]
