"""What one section sees: history frames at three rates and where they stand for RoPE."""

from typing import NamedTuple

import torch
from torch import Tensor

from .constants import LATENT_SCALE
from .history import History, read_frames
from .section_plan import Direction, Section


class FrameIndices(NamedTuple):
    """RoPE frame positions of the packed groups; plain ints, so that they may be compared and hashed."""

    section: tuple[int, ...]
    history_1x: tuple[int, ...]
    history_2x: tuple[int, ...]
    history_4x: tuple[int, ...]

    @property
    def direction(self) -> Direction:
        """Of the film: F1's sections stand behind the frames that they see, FramePack's before them."""
        return Direction.FORWARD if self.section[0] > self.history_1x[-1] else Direction.BACKWARD


class PackedHistory(NamedTuple):
    """The frames around one section, each [B, 16, T, h, w] unscaled, and all positions."""

    history_1x: Tensor  # start image (if any) and the frame next to the section
    history_2x: Tensor
    history_4x: Tensor
    indices: FrameIndices

    def scaled(self) -> "PackedHistory":
        """The same with latents as the transformer takes them (times the VAE's scaling factor)."""
        return PackedHistory(
            self.history_1x * LATENT_SCALE, self.history_2x * LATENT_SCALE, self.history_4x * LATENT_SCALE, self.indices
        )


def pack_history(history: History, section: Section) -> PackedHistory:
    """Collect what a section sees. A film without a start image simply has no start token group."""
    near = read_frames(history, section.history_1x.frames)
    near_indices = tuple(section.history_1x.indices)
    if history.start_latent is not None:
        near = torch.cat([history.start_latent, near], dim=2)  # [B, 16, 2, h, w]
        near_indices = (section.start_index, *near_indices)
    return PackedHistory(
        history_1x=near,
        history_2x=read_frames(history, section.history_2x.frames),
        history_4x=read_frames(history, section.history_4x.frames),
        indices=FrameIndices(
            section=tuple(section.target.indices),
            history_1x=near_indices,
            history_2x=tuple(section.history_2x.indices),
            history_4x=tuple(section.history_4x.indices),
        ),
    )
