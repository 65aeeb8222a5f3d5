"""Where the object of every film is at every frame, how large and how turned.

Motions are closed forms of the time t in 0..1 of their section and of the state that the section starts with, so
position, angle and size are continuous where sections meet.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .scene import MOTIONS, SECTION_FRAMES, Scenes

FAST, SLOW = 0.5, 0.2  # path in one section, units
HOPS, HOP_HEIGHT = 3, 0.2  # of bouncing, in one section
TURN = 2 * math.pi  # of spinning, in one section: upright again at its end
START_RADIUS = (0.13, 0.2)  # of SIZES, units
SMALLEST, LARGEST = 0.08, 0.34  # radii that shrinking and growing approach and never reach
RESIZE = 0.5  # part of the way to the limit that one section goes, in the logarithm of the radius

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
    starts = section_states(scenes, extent)
    start = State(*(value[:, section] for value in starts))
    return moved(start, scenes.motions[:, section], time)


def section_states(scenes: Scenes, extent: tuple[float, float] = (1.0, 1.0)) -> State:
    """State at the start of every section, and at the end of the film: leading shape [B, S + 1]."""
    size = torch.tensor(extent, device=scenes.device)
    radius = torch.tensor(START_RADIUS, device=scenes.device)[scenes.size]
    states = [State(scenes.start * size, radius, torch.zeros_like(radius))]
    for motion in scenes.motions.unbind(1):
        states.append(moved(states[-1], motion, torch.ones_like(radius)))
    return State(*(torch.stack(values, 1) for values in zip(*states, strict=True)))


def moved(start: State, motion: Tensor, time: Tensor) -> State:
    """The state after part of a motion. time: 0 at the start of the section, 1 at its end; shapes broadcast."""
    device = start.radius.device
    path = torch.tensor([_path(name) for name in MOTIONS], device=device)[motion]  # [..., 2]
    hop = (HOPS * time) % 1
    lift = _marks("bounces", device)[motion] * HOP_HEIGHT * 4 * hop * (1 - hop)
    position = start.position + path * time[..., None]
    position = torch.stack([position[..., 0], position[..., 1] - lift], -1)
    grows, shrinks = _marks("grows", device)[motion], _marks("shrinks", device)[motion]
    log_radius = start.radius.log()
    goal = grows * (math.log(LARGEST) - log_radius) + shrinks * (math.log(SMALLEST) - log_radius)
    turn = _marks("spins", device)[motion] * TURN * time
    return State(position, (log_radius + RESIZE * time * goal).exp(), start.angle + turn)


def _path(name: str) -> tuple[float, float]:
    """Path of one section."""
    x, y = _STEPS.get(name.removeprefix("slowly "), (0, 0))
    length = SLOW if name.startswith("slowly ") else FAST
    return x * length, y * length


def _marks(name: str, device: torch.device) -> Tensor:
    """1 for the motion of this name, 0 for the others: [M]."""
    return torch.tensor([float(name == other) for other in MOTIONS], device=device)
