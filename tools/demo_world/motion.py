"""Where the object of every film is at every frame, how large and how turned.

Motions are closed forms of the time t in 0..1 of their section, and loops: at its end the object is as at its start.
A film made from its end to its start needs that, since the last section's place must not depend on prompts that its
maker has not seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .scene import MOTIONS, SECTION_FRAMES, Scenes

HOPS, HOP_HEIGHT = 3, 0.2  # of bouncing, in one section
TURN = 2 * math.pi  # of spinning, in one section
START_RADIUS = (0.13, 0.2)  # of SIZES, units
SMALLEST, LARGEST = 0.08, 0.34  # radii that shrinking and growing approach
RESIZE = 0.8  # part of the way to the limit that they go in the middle of a section, in the logarithm of the radius

_STEPS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


class State(NamedTuple):
    """The object at some instants (any leading shape)."""

    position: Tensor  # [..., 2] x, y in units; not wrapped round the edges
    radius: Tensor  # [...] units
    angle: Tensor  # [...] radians, clockwise on the screen


def film_states(scenes: Scenes, frames: Tensor | Sequence[int], extent: tuple[float, float] = (1.0, 1.0)) -> State:
    """State of every film at these frame numbers: leading shape [B, F]. extent: see picture_extent.

    Raises ValueError for frames that the films do not have.
    """
    frames = torch.as_tensor(frames)
    if frames.numel() and not 0 <= int(frames.min()) <= int(frames.max()) < scenes.frames:
        raise ValueError(
            f"Frames {int(frames.min())} to {int(frames.max())} were asked for, but the films have frames 0 to "
            f"{scenes.frames - 1}; give the scenes more motions."
        )
    frames = frames.to(scenes.device)
    section = (frames - 1).clamp(min=0) // SECTION_FRAMES  # [F]
    time = (frames - section * SECTION_FRAMES) / SECTION_FRAMES
    start = start_state(scenes, extent)
    start = State(*(value.unsqueeze(1) for value in start))
    return moved(start, scenes.motions[:, section], time, extent)


def start_state(scenes: Scenes, extent: tuple[float, float] = (1.0, 1.0)) -> State:
    """State at the borders of all sections: leading shape [B]."""
    radius = torch.tensor(START_RADIUS, device=scenes.device)[scenes.size]
    return State(scenes.start * torch.tensor(extent, device=scenes.device), radius, torch.zeros_like(radius))


def moved(start: State, motion: Tensor, time: Tensor, extent: tuple[float, float] = (1.0, 1.0)) -> State:
    """The state after part of a motion. time: 0 at the start of the section, 1 at its end; shapes broadcast.

    An object that travels goes once round the picture.
    """
    device = start.radius.device
    path = torch.tensor([_STEPS.get(name, (0, 0)) for name in MOTIONS], device=device)[motion]  # [..., 2]
    hop = (HOPS * time) % 1
    lift = _marks("bounces", device)[motion] * HOP_HEIGHT * 4 * hop * (1 - hop)
    position = start.position + path * torch.tensor(extent, device=device) * time[..., None]
    position = torch.stack([position[..., 0], position[..., 1] - lift], -1)
    grows, shrinks = _marks("grows", device)[motion], _marks("shrinks", device)[motion]
    log_radius = start.radius.log()
    goal = grows * (math.log(LARGEST) - log_radius) + shrinks * (math.log(SMALLEST) - log_radius)
    swell = RESIZE * torch.sin(math.pi * time).square()
    turn = _marks("spins", device)[motion] * TURN * time
    return State(position, (log_radius + swell * goal).exp(), start.angle + turn)


def _marks(name: str, device: torch.device) -> Tensor:
    """1 for the motion of this name, 0 for the others: [M]."""
    return torch.tensor([float(name == other) for other in MOTIONS], device=device)
