"""Films of the demo world as latents and back, many at once, as the host's VAE and vision encoder see them.

Letters: B films, F frames, H W pixels, T h w latents, K stills of a film.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...framepack_core.constants import FRAMES_PER_LATENT
from ...framepack_core.training.autoencoder import code_in_one_go
from ..demo_world.render import render
from ..demo_world.scene import SECTION_FRAMES, Scenes

WINDOW = SECTION_FRAMES // FRAMES_PER_LATENT  # latent frames of a section
_MOST_VALUES = 2**30  # of one activation: kernels count in 32 bits, and the memory must suffice for several
_MOST_FRAMES = 8192  # rendered together


class EncodedFilms(NamedTuple):
    """What inference would know of the films, where the VAE computes."""

    latents: Tensor  # [B, 16, T, h, w] unscaled, in the VAE's dtype
    stills: Tensor  # [B, K, 16, h, w] the frames at the borders of sections, each encoded as one image
    vision: Tensor  # [B, K, tokens, width] vision features of the same frames, float32


class FilmCoder:
    """The host's VAE and vision encoder on batches of films; a VAE socket takes a batch for the frames of one film."""

    def __init__(self, vae: Any, clip_vision: Any, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.model = vae.first_stage_model.to(self.device).eval()
        code_in_one_go(self.model)
        self.dtype: torch.dtype = vae.vae_dtype
        self.width = int(self.model.encoder.conv_in.conv.weight.shape[0])
        self.clip_vision = clip_vision

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, F, H, W, 3] of 0..1, F = 4 n + 1 -> means of the posterior [B, 16, n + 1, h, w]."""
        pieces = frames.split(self._films_at_once(*frames.shape[1:4]))
        pixels = ((piece.to(self.device) * 2 - 1).movedim(-1, 1).to(self.dtype) for piece in pieces)
        return torch.cat([self.model.encode(piece) for piece in pixels])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 16, T, h, w] unscaled -> frames [B, 4 T - 3, H, W, 3] of 0..1, float32."""
        frames = FRAMES_PER_LATENT * (latents.shape[2] - 1) + 1
        pieces = latents.split(self._films_at_once(frames, latents.shape[3] * 8, latents.shape[4] * 8))
        decoded = (self.model.decode(piece.to(self.device, self.dtype)).float() for piece in pieces)
        return torch.cat([(piece.movedim(1, -1) / 2 + 0.5).clamp(0, 1) for piece in decoded])

    @torch.no_grad()
    def look(self, images: Tensor, batch: int = 512) -> Tensor:
        """Vision features of images [B, H, W, 3], as CLIP_VISION_OUTPUT's last_hidden_state: [B, tokens, width]."""
        pieces = (self.clip_vision.encode_image(piece, crop=False) for piece in images.split(batch))
        return torch.cat([piece.last_hidden_state.to(self.device, torch.float32) for piece in pieces])

    def encode_scenes(self, scenes: Scenes, size: int) -> EncodedFilms:
        """Render films of one length and encode all of them."""
        batch = max(_MOST_FRAMES // scenes.frames, 1)
        parts = []
        for begin in range(0, len(scenes), batch):
            frames = render(scenes[begin : begin + batch], range(scenes.frames), size, size)  # [B, F, H, W, 3]
            stills = frames[:, ::SECTION_FRAMES]  # [B, K, H, W, 3]
            films, borders = stills.shape[:2]
            parts.append(
                EncodedFilms(
                    self.encode(frames),
                    self.encode(stills.flatten(0, 1).unsqueeze(1)).squeeze(2).unflatten(0, (films, borders)),
                    self.look(stills.flatten(0, 1)).unflatten(0, (films, borders)),
                )
            )
        return EncodedFilms(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _films_at_once(self, frames: int, height: int, width: int) -> int:
        return max(_MOST_VALUES // (self.width * frames * height * width), 1)


def section_parts(frames: Tensor, sections: int) -> Iterator[Tensor]:
    """Frames of each section, its first frame that of the section before: [B, 37, H, W, 3] each."""
    for section in range(sections):
        yield frames[:, section * SECTION_FRAMES : (section + 1) * SECTION_FRAMES + 1]
