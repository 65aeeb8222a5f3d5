"""The film so far, as a value: every operation returns a new history, none changes one."""

from typing import NamedTuple

import torch
from torch import Tensor

from .constants import FRAMES_PER_LATENT, LATENT_CHANNELS, PIXELS_PER_LATENT, SIZE_MULTIPLE
from .section_plan import START_FRAME, Section, SectionPlan

VERSION = 1


class History(NamedTuple):
    """What has been made, and what it takes to go on. Tensors are CPU float32, latents unscaled.

    A tuple and not a class of our own, so that the host's cache accounting sees the tensors.
    """

    version: int
    plan: SectionPlan
    seed: int
    shape: tuple[int, int, int]  # batch, latent height, latent width
    sections: tuple[Tensor | None, ...]  # in film order, each [B, 16, window, h, w]; None: not made yet
    start_latent: Tensor | None  # [B, 16, 1, h, w]
    end_latent: Tensor | None  # [B, 16, 1, h, w]
    image_embeds: Tensor | None  # [B, tokens, width]

    @property
    def draws(self) -> int:
        """Sections made, which is the number of draws taken from the noise stream."""
        return sum(section is not None for section in self.sections)

    @property
    def next_section(self) -> Section | None:
        """The section to be made next, or None when the film is whole."""
        return self.plan.sections[self.draws] if self.draws < len(self.sections) else None

    @property
    def starts_with_image(self) -> bool:
        """Whether the film begins with the start image (it does once the first section in time exists)."""
        return self.start_latent is not None and self.sections[0] is not None


def new_history(
    plan: SectionPlan,
    seed: int,
    width: int,
    height: int,
    start_latent: Tensor | None = None,
    end_latent: Tensor | None = None,
    image_embeds: Tensor | None = None,
) -> History:
    """An empty film. width and height are pixels and are used when there is no start latent.

    Raises ValueError for sizes that are not a multiple of 16, latents of another shape than
    [B, 16, 1, h, w], values that are not finite, and an end latent of another size than the film or
    for a plan that looks back only.
    """
    batch = 1
    if start_latent is not None:
        _check_latent("start_latent", start_latent)
        batch, height, width = _size(start_latent)
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE or width < SIZE_MULTIPLE or height < SIZE_MULTIPLE:
        raise ValueError(
            f"The film would be {width}x{height} pixels; both sides must be a multiple of {SIZE_MULTIPLE}. "
            "Resize the image (FramePack Start Image does) or change width and height."
        )
    if end_latent is not None:
        _check_latent("end_latent", end_latent)
        _check_end(end_latent, plan, width, height)
    return History(
        version=VERSION,
        plan=plan,
        seed=seed,
        shape=(batch, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT),
        sections=(None,) * len(plan.sections),
        start_latent=_stored(start_latent),
        end_latent=_stored(end_latent),
        image_embeds=_stored(image_embeds),
    )


def append_section(history: History, latents: Tensor) -> History:
    """The history with its next section, latents [B, 16, window, h, w] unscaled.

    Raises ValueError when the film is whole already, or the latents have another shape or are not finite.
    """
    section = due_section(history)
    expected = section_shape(history)
    if tuple(latents.shape) != expected:
        raise ValueError(
            f"The latents for {history.plan.name(section)} have shape {tuple(latents.shape)}, the history needs "
            f"{expected}; sample the latent that FramePack Apply History gives."
        )
    if not torch.isfinite(latents).all():
        raise ValueError(f"The latents for {history.plan.name(section)} hold NaN or infinity.")
    place = history.plan.place(section)
    made = _stored(latents)
    return history._replace(sections=(*history.sections[:place], made, *history.sections[place + 1 :]))


def due_section(history: History) -> Section:
    """The section to be made next. Raises ValueError when the film is whole."""
    section = history.next_section
    if section is None:
        raise ValueError(f"The film already has all of its {len(history.sections)} sections; start a new history.")
    return section


def made_places(history: History) -> list[int]:
    """Film-order numbers of the sections made so far. Raises ValueError when there is none."""
    made = [place for place, section in enumerate(history.sections) if section is not None]
    if not made:
        raise ValueError("This history has no section yet; run FramePack Sampler, or append a section, first.")
    return made


def section_shape(history: History) -> tuple[int, int, int, int, int]:
    """Shape of one section's latents: (B, 16, window, h, w)."""
    batch, height, width = history.shape
    return batch, LATENT_CHANNELS, history.plan.window, height, width


def read_frames(history: History, frames: range) -> Tensor:
    """Film frames as [B, 16, len(frames), h, w]; frames that nobody has made are zero.

    Zero frames are what the model was trained with for "nothing there yet" (FP demo_gradio.py).
    """
    batch, channels, window, height, width = section_shape(history)
    out = torch.zeros(batch, channels, len(frames), height, width)  # [B, 16, T, h, w]
    for place, frame in enumerate(frames):
        if frame == START_FRAME:
            known = history.start_latent
        elif frame == history.plan.end_frame:
            known = history.end_latent
        elif 0 <= frame < history.plan.end_frame:
            section = history.sections[frame // window]
            known = None if section is None else section[:, :, frame % window :][:, :, :1]
        else:
            known = None
        if known is not None:
            out[:, :, place : place + 1] = known
    return out


def film_latents(history: History) -> Tensor:
    """The frames made so far in film order, [B, 16, T, h, w] unscaled, the start image first once it joins.

    Raises ValueError when nothing has been made yet.
    """
    made = [history.sections[place] for place in made_places(history)]
    if history.starts_with_image and history.start_latent is not None:
        made.insert(0, history.start_latent)
    return torch.cat([latents for latents in made if latents is not None], dim=2)


def film_frames(latent_frames: int) -> int:
    """Pixel frames of a causal decode: 4 T - 3."""
    return FRAMES_PER_LATENT * (latent_frames - 1) + 1


def _size(latent: Tensor) -> tuple[int, int, int]:
    return latent.shape[0], latent.shape[-2] * PIXELS_PER_LATENT, latent.shape[-1] * PIXELS_PER_LATENT


def _stored(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device="cpu", dtype=torch.float32)


def _check_latent(name: str, latent: Tensor) -> None:
    if latent.ndim != 5 or latent.shape[1] != LATENT_CHANNELS or latent.shape[2] != 1:
        raise ValueError(
            f"{name} has shape {tuple(latent.shape)}; FramePack needs one frame of a HunyuanVideo VAE, "
            f"[batch, {LATENT_CHANNELS}, 1, height/8, width/8]. Encode one image with that VAE."
        )
    if not torch.isfinite(latent).all():
        raise ValueError(f"{name} holds values that are not finite; encode the image again, in fp32 if fp16 did it.")


def _check_end(end_latent: Tensor, plan: SectionPlan, width: int, height: int) -> None:
    if not any(plan.end_frame in section.history_1x.frames for section in plan.sections):
        raise ValueError(
            f"An end image needs a backward film (FramePack); this one is {plan.direction.value}, "
            "whose sections never see what comes after them. Disconnect end_latent or change the mode."
        )
    _, end_height, end_width = _size(end_latent)
    if (end_width, end_height) != (width, height):
        raise ValueError(
            f"end_latent is {end_width}x{end_height} pixels, the film {width}x{height}; "
            "resize the end image to the size of the start image."
        )
