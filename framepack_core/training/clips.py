"""What training reads: clips as latents, and the prompts of their sections as features.

Latents are unscaled, as histories hold them. Letters: N clips, T latent frames, h w latent height and width, S sections
of the longest clip, K stills of a clip, V wordings of a prompt, M distinct prompts, L tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import LATENT_CHANNELS


class Prompts(NamedTuple):
    """Every distinct prompt once; a clip's sections name rows of this table."""

    features: Tensor  # [M, L, E], where the model is; a prompt's tokens first, anything behind them
    pooled: Tensor  # [M, P], where the model is
    lengths: Tensor  # [M] int64 on the CPU: tokens of each prompt
    empty: int  # the row of the empty prompt, which stands in for a dropped one


class Clips(NamedTuple):
    """Clips of any length in one table; shorter ones are filled up with anything."""

    latents: Tensor  # [N, 16, T, h, w], where the model is: the first image, then whole sections
    stills: Tensor  # [N, K, 16, h, w], likewise: frame 4 * window * k of the clip encoded as one image
    vision: Tensor  # [N, K, tokens, width], likewise: vision features of the same images
    texts: Tensor  # [N, S, V] int64 on the CPU: rows of Prompts for each section, in several wordings
    sections: Tensor  # [N] int64 on the CPU: whole sections of each clip


def new_clips(
    latents: Tensor,
    texts: Tensor,
    vision: Tensor,
    window: int,
    stills: Tensor | None = None,
    sections: Tensor | None = None,
) -> Clips:
    """Clips from latents [N, 16, T, h, w], rows of Prompts [N, S, V] and vision features [N, K, tokens, width].

    Without stills films begin where their clip does: its first latent frame is that of its first image alone, since
    the VAE is causal. With stills at all K = S + 1 borders films also begin at any border and may have an end image.
    Without sections every clip is of full length, (T - 1) // window sections.
    Raises ValueError when a clip has no whole section or the tables do not agree.
    """
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; training needs [N, {LATENT_CHANNELS}, T, h, w].")
    count, _, frames = latents.shape[:3]
    most = (frames - 1) // window
    stills = latents[:, :, :1].transpose(1, 2) if stills is None else stills
    sections = torch.full((count,), most) if sections is None else sections.cpu()
    if most < 1 or int(sections.min()) < 1 or int(sections.max()) > most:
        raise ValueError(
            f"Clips have {int(sections.min())} to {int(sections.max())} sections in {frames} latent frames; "
            f"each needs at least 1 of {window} frames behind the first image, and at most {most} fit."
        )
    lengths = {len(table) for table in (latents, texts, vision, stills, sections)}
    if len(lengths) > 1 or texts.shape[1] < int(sections.max()) or vision.shape[1] != stills.shape[1]:
        raise ValueError(
            f"The tables of {count} clips with up to {int(sections.max())} sections do not agree: texts "
            f"{tuple(texts.shape)}, vision {tuple(vision.shape)}, stills {tuple(stills.shape)}, "
            f"sections {tuple(sections.shape)}."
        )
    return Clips(latents, stills, vision, texts.cpu(), sections)


def check_prompts(prompts: Prompts, clips: Clips) -> None:
    """Raises ValueError for a prompt without tokens, or clips that name a row that is not there."""
    rows = len(prompts.features)
    if int(prompts.lengths.min()) < 1 or int(prompts.lengths.max()) > prompts.features.shape[1]:
        raise ValueError(
            f"Prompts have {int(prompts.lengths.min())} to {int(prompts.lengths.max())} tokens; "
            f"each needs 1 to {prompts.features.shape[1]}, the empty one too."
        )
    if not 0 <= prompts.empty < rows or int(clips.texts.min()) < 0 or int(clips.texts.max()) >= rows:
        raise ValueError(f"texts or empty name a prompt outside the {rows} rows of the table.")
