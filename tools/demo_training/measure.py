"""What a trained demo transformer shows on held-out films: loss, obedience, and what of the start image is kept.

Films are made by the pack's own section loop, sampler, noise levels and decoding; the judge is the demo world's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...framepack_core.decoding import decode_film, plan_sections
from ...framepack_core.generate import generate
from ...framepack_core.history import History, film_latents, new_history
from ...framepack_core.model.transformer import FramePackTransformer
from ...framepack_core.schedule import section_sigmas
from ...framepack_core.section_plan import Direction, Section, SectionPlan, plan_backward, plan_forward
from ...framepack_core.training.autoencoder import psnr
from ...framepack_core.training.objective import velocity_error
from ...framepack_core.training.sampling import Text, model_denoise
from ...framepack_core.training.sections import Cut, Given, Layout, make_batch
from ..demo_world.backgrounds import paint_backgrounds
from ..demo_world.judge import judge_colour, judge_motion, judge_shape
from ..demo_world.render import render
from ..demo_world.sampling import random_scenes
from ..demo_world.scene import Scenes
from .dataset import Dataset, Encoders, encode_dataset
from .films import WINDOW, section_parts

PLANS: dict[Direction, Callable[[int, int], SectionPlan]] = {
    Direction.BACKWARD: plan_backward,
    Direction.FORWARD: plan_forward,
}
LEVELS = (0.25, 0.5, 0.75, 0.9, 1.0)  # noise levels at which the loss is measured
_SHEET_FILMS, _SHEET_EVERY = 8, 9  # rows, and frames between columns
_JUDGED = 16  # films that the judge sees together
Figures = dict[str, float]


class HeldOut(NamedTuple):
    """Films of combinations that training never shows, all of one length."""

    scenes: Scenes
    dataset: Dataset  # with captions that name everything, in one wording
    size: int


@dataclass(frozen=True)
class Sampling:
    """How films are made."""

    steps: int = 25
    cfg: float = 1.0
    dtype: torch.dtype = torch.bfloat16
    seed: int = 1


def held_out_films(count: int, sections: int, encoders: Encoders, size: int, seed: int = 9) -> HeldOut:
    """The same films for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(count, sections, generator, for_tests=True, device=encoders.coder.device)
    return HeldOut(scenes, encode_dataset([scenes], encoders, size, 1, generator), size)


@torch.no_grad()
def validation_loss(model: FramePackTransformer, films: HeldOut, dtype: torch.dtype) -> dict[str, list[float]]:
    """Per direction, the mean loss of all sections at LEVELS, with true histories and the same noise for each level."""
    out = {}
    for direction, plan_of in PLANS.items():
        plan = plan_of(films.scenes.sections, WINDOW)
        losses = [_section_losses(model, films, Layout(plan, section), dtype) for section in plan.sections]
        out[direction.value] = torch.stack(losses).mean(dim=0).tolist()
    return out


def make_films(
    model: FramePackTransformer,
    films: HeldOut,
    direction: Direction,
    sampling: Sampling,
    sections: int | None = None,
    given: Given | None = None,
) -> History:
    """Films from the held-out captions, by default with their start images and for all sections."""
    given = given or Given()
    clips, prompts = films.dataset
    count = films.scenes.sections if sections is None else sections
    plan = PLANS[direction](count, WINDOW)
    stills = clips.stills.float().cpu().unsqueeze(3)  # [B, K, 16, 1, h, w]
    vision = clips.vision[:, 0] if given.start else None
    history = new_history(
        plan,
        sampling.seed,
        films.size,
        films.size,
        start_latent=stills[:, 0] if given.start else None,
        end_latent=stills[:, count] if given.end else None,
        image_embeds=vision,
    )
    history = history._replace(shape=(len(films.scenes), *history.shape[1:]))

    def text(section: Section) -> Text:
        return _text(films.dataset, clips.texts[:, plan.place(section), 0])

    empty = _text(films.dataset, torch.tensor([prompts.empty]))
    sigmas = section_sigmas(history, sampling.steps)
    negative = None if sampling.cfg == 1.0 else empty
    return generate(history, model_denoise(model, text, sigmas, vision, negative, sampling.cfg, sampling.dtype))


def true_film(films: HeldOut, direction: Direction) -> History:
    """The films as the VAE keeps them: what a perfect transformer would make."""
    clips, scenes = films.dataset.clips, films.scenes
    plan = PLANS[direction](scenes.sections, WINDOW)
    latents = clips.latents.float()
    history = new_history(plan, 0, films.size, films.size, clips.stills[:, 0].float().cpu().unsqueeze(2))
    return history._replace(sections=tuple(latents[:, :, 1:].cpu().split(WINDOW, dim=2)))


def decoded(history: History, encoders: Encoders) -> Tensor:
    """Frames [B, F, H, W, 3] of 0..1 by the pack's windows and cross-fades, where the VAE computes."""
    return torch.cat(list(decode_film(film_latents(history), plan_sections(history), encoders.coder.decode)), dim=1)


@torch.no_grad()
def judge_films(frames: Tensor, films: HeldOut) -> Figures:
    """Of films with a start image; all figures are shares of 1, or decibels."""
    scenes = films.scenes
    backgrounds = paint_backgrounds(scenes, films.size, films.size)
    motions = [_judged(judge_motion, part, backgrounds) for part in section_parts(frames, scenes.sections)]
    obeyed = torch.stack(motions, dim=1) == scenes.motions  # [B, S]
    last = list(section_parts(frames, scenes.sections))[-1]
    first_image = render(scenes, [0], films.size, films.size)[:, 0]
    return {
        "motion obeyed": _share(obeyed),
        **{f"motion obeyed in section {number}": _share(part) for number, part in enumerate(obeyed.unbind(1))},
        "colour kept": _share(_judged(judge_colour, last, backgrounds) == scenes.colour),
        "shape kept": _share(_judged(judge_shape, last, backgrounds) == scenes.shape),
        "first frame dB": float(psnr(frames[:, 0] * 2 - 1, first_image * 2 - 1).mean()),
        "film dB": float(
            psnr(frames * 2 - 1, render(scenes, range(frames.shape[1]), films.size, films.size) * 2 - 1).mean()
        ),
    }


@torch.no_grad()
def judge_looks(frames: Tensor, films: HeldOut) -> Figures:
    """Of films made from captions alone: nobody knows the background."""
    right_colour = _judged(judge_colour, frames) == films.scenes.colour
    right_shape = _judged(judge_shape, frames) == films.scenes.shape
    return {"colour right": _share(right_colour), "shape right": _share(right_shape)}


def measure(
    model: FramePackTransformer, films: HeldOut, encoders: Encoders, sampling: Sampling
) -> tuple[dict[str, Figures], dict[str, Tensor]]:
    """Figures of every way to make a film, and a contact sheet of each, uint8 [rows, columns, 3]."""
    figures: dict[str, Figures] = {}
    sheets = {}
    for direction in PLANS:
        name = direction.value
        figures[f"{name}, VAE alone"] = judge_films(decoded(true_film(films, direction), encoders), films)
        frames = decoded(make_films(model, films, direction, sampling), encoders)
        figures[name] = judge_films(frames, films)
        sheets[name] = contact_sheet(frames)
        imagined = decoded(make_films(model, films, direction, sampling, 1, Given(start=False)), encoders)
        figures[f"{name}, text to video"] = judge_looks(imagined, films)
        sheets[f"{name}_text_to_video"] = contact_sheet(imagined)
    frames = decoded(make_films(model, films, Direction.BACKWARD, sampling, given=Given(end=True)), encoders)
    last_image = render(films.scenes, [films.scenes.frames - 1], films.size, films.size)[:, 0]
    end = {"last frame dB": float(psnr(frames[:, -1] * 2 - 1, last_image * 2 - 1).mean())}
    figures["backward, end image"] = {**judge_films(frames, films), **end}
    return figures, sheets


def contact_sheet(frames: Tensor, gap: int = 4) -> Tensor:
    """Some films, a row each, and some of their frames: uint8 [rows, columns, 3]."""
    shown = frames[:_SHEET_FILMS, ::_SHEET_EVERY]
    shown = torch.nn.functional.pad(shown, (0, 0, 0, gap, 0, gap), value=1.0)  # [B, F, H, W, 3]
    sheet = shown.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return (sheet.clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def _section_losses(model: FramePackTransformer, films: HeldOut, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Mean over the films at each of LEVELS."""
    clips, prompts = films.dataset
    count = len(films.scenes)
    none = torch.zeros(count, dtype=torch.long)
    batch = make_batch(clips, prompts, layout, Cut(torch.arange(count), none, none), Given())
    text = _text(films.dataset, clips.texts[:, layout.plan.place(layout.section), 0])
    batch = batch._replace(
        conditions=batch.conditions._replace(context=text.context, pooled=text.pooled, mask=text.mask)
    )
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0)).to(batch.latents.device)
    levels = (torch.full((count,), level, device=noise.device) for level in LEVELS)
    return torch.stack([velocity_error(model, batch, sigma, noise, dtype).mean() for sigma in levels])


def _text(dataset: Dataset, rows: Tensor) -> Text:
    """Features of prompts of any lengths."""
    prompts = dataset.prompts
    lengths = prompts.lengths[rows]
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # [B, L]
    there = rows.to(prompts.features.device)
    return Text(prompts.features[there, : mask.shape[1]], prompts.pooled[there], mask)


def _judged(judge: Callable[..., Tensor], frames: Tensor, backgrounds: Tensor | None = None) -> Tensor:
    """A judge's verdicts on all films, a few at a time."""
    pieces = frames.split(_JUDGED)
    known = [None] * len(pieces) if backgrounds is None else backgrounds.split(_JUDGED)
    return torch.cat([judge(*pair) for pair in zip(pieces, known, strict=True)])


def _share(right: Tensor) -> float:
    return float(right.float().mean())
