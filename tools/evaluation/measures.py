"""Frames of films to figures.

The judge sees the frames and, where a start image fixes it, the picture behind the object.
"""

from typing import Any

import torch
from framepack_pack.tools.demo_world.backgrounds import paint_backgrounds
from framepack_pack.tools.demo_world.judge import judge_colour, judge_motion, judge_shape
from framepack_pack.tools.demo_world.render import render
from framepack_pack.tools.demo_world.scene import MOTIONS, Scenes, section_frames
from torch import Tensor

DIRECTIONS = ("right", "left", "up", "down")
_NO_DIRECTION = -1


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR in dB of each film, [B, ...] values 0..1 -> [B]."""
    error = (first.float() - second.float()).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def judged_motions(scenes: Scenes, frames: Tensor, knows_background: bool = True, device: Any = "cpu") -> Tensor:
    """What each section shows: [B, S] index into MOTIONS. frames: [B, F, H, W, 3], the whole film.

    Text-to-video films lack the first frames of the world's, and their background is of their own choice.
    """
    scenes = scenes.to(device)
    background = paint_backgrounds(scenes, *frames.shape[2:4]) if knows_background else None
    judged = []
    for section in range(scenes.sections):
        numbers = section_frames(section)
        part = frames[:, _places(scenes, frames, numbers)].to(device)
        missing = (len(numbers) - part.shape[1]) / (len(numbers) - 1)
        judged.append(judge_motion(part, background, begin=missing).cpu())
    return torch.stack(judged, 1)


def section_psnr(scenes: Scenes, frames: Tensor, device: Any = "cpu") -> Tensor:
    """PSNR in dB of each section, its first frame not counted, against what the world shows: [B, S]."""
    scenes, columns = scenes.to(device), []
    for section in range(scenes.sections):
        numbers = section_frames(section)[1:]
        truth = render(scenes, numbers, *frames.shape[2:4])
        columns.append(psnr(frames[:, _places(scenes, frames, numbers)].to(device), truth).cpu())
    return torch.stack(columns, 1)


def handover_psnr(scenes: Scenes, frames: Tensor, device: Any = "cpu") -> Tensor:
    """PSNR in dB of frames 1 to 4, the first latent that is generated, against what the world shows: [B].

    Frame 0 is the start image itself in every film, so whether the film goes on from it shows here.
    """
    truth = render(scenes.to(device), range(1, 5), *frames.shape[2:4])
    return psnr(frames[:, 1:5].to(device), truth).cpu()


def start_psnr(scenes: Scenes, pictures: Tensor) -> Tensor:
    """PSNR in dB of pictures [B, H, W, 3] against the start images: [B]."""
    return psnr(pictures, render(scenes, [0], *pictures.shape[1:3])[:, 0])


def kept_looks(scenes: Scenes, frames: Tensor, knows_background: bool = True, device: Any = "cpu") -> dict[str, Tensor]:
    """Whether the last frame's object has the colour and the shape that it should have: bool [B] each."""
    scenes = scenes.to(device)
    background = paint_backgrounds(scenes, *frames.shape[2:4]) if knows_background else None
    last = frames[:, -1:].to(device)
    colour, shape = judge_colour(last, background), judge_shape(last, background)
    return {"colour": (colour == scenes.colour).cpu(), "shape": (shape == scenes.shape).cpu()}


def direction_right(asked: Tensor, judged: Tensor) -> float | None:
    """Share of the sections that should travel whose judged direction is the one asked for."""
    way = torch.tensor([_direction(name) for name in MOTIONS])
    travels = way[asked] != _NO_DIRECTION
    return float((way[asked] == way[judged])[travels].float().mean()) if travels.any() else None


def measure(scenes: Scenes, frames: Tensor, has_start: bool = True, device: Any = "cpu") -> dict[str, Any]:
    """All figures of a batch of films, plain numbers. Shares are 0..1, PSNRs means over films in dB.

    What needs to know where the object is (PSNR against the world's film) is None for text-to-video.
    """
    judged = judged_motions(scenes, frames, has_start, device)
    obeyed = (judged == scenes.motions).float()
    looks = kept_looks(scenes, frames, has_start, device)
    found: dict[str, Any] = {
        "obeyed": float(obeyed.mean()),
        "obeyed_by_section": _rounded(obeyed.mean(0)),
        "direction": direction_right(scenes.motions, judged),
        "colour": float(looks["colour"].float().mean()),
        "shape": float(looks["shape"].float().mean()),
        "mistakes": _mistakes(scenes.motions, judged),
        "first_frame_psnr": None,
        "handover_psnr": None,
        "section_psnr": None,
        "last_frame_psnr": None,
    }
    if has_start:
        found["first_frame_psnr"] = float(start_psnr(scenes, frames[:, 0]).mean())
        found["handover_psnr"] = float(handover_psnr(scenes, frames, device).mean())
        found["section_psnr"] = _rounded(section_psnr(scenes, frames, device).mean(0))
        last = render(scenes, [scenes.frames - 1], *frames.shape[2:4])[:, 0]
        found["last_frame_psnr"] = float(psnr(frames[:, -1], last).mean())
    return found


def _places(scenes: Scenes, frames: Tensor, numbers: range) -> slice:
    """Where frames of these film numbers lie in [B, F, ...]; those before the first that exists are left out."""
    first = scenes.frames - frames.shape[1]
    return slice(max(numbers.start - first, 0), numbers.stop - first)


def _direction(motion: str) -> int:
    return DIRECTIONS.index(motion) if motion in DIRECTIONS else _NO_DIRECTION


def _mistakes(asked: Tensor, judged: Tensor) -> dict[str, int]:
    """ "asked -> judged" and how often, the most frequent first."""
    pairs = list(zip(asked.flatten().tolist(), judged.flatten().tolist(), strict=True))
    wrong = [f"{MOTIONS[a]} -> {MOTIONS[b]}" for a, b in pairs if a != b]
    return dict(sorted(((name, wrong.count(name)) for name in set(wrong)), key=lambda item: (-item[1], item[0])))


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
