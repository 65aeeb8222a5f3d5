"""Tokens, floating point operations and bytes of one forward, from sizes alone.

A multiplication with its addition counts as two operations. Only the blocks are counted, which is all but 0.1 %.
"""

from math import ceil
from typing import NamedTuple

import torch

from ..constants import HISTORY_FRAMES_1X, HISTORY_FRAMES_2X, HISTORY_FRAMES_4X, PIXELS_PER_LATENT
from ..model.config import FramePackConfig
from ..model.pieces import mlp_bytes
from ..model.transformer import FramePackTransformer

IMAGE_TOKENS = 729  # SigLIP so400m at 384 pixels in patches of 14: 27 x 27
TEXT_TOKENS = 128  # a prompt of some sentences; the original cuts at 256
STEP_PARTS = ("norm1", "norm1_context", "norm", "norm_out", "time_text_embed", "context_embedder", "image_projection")
"""Modules that see timestep, prompt and start image only, and so can be left out of the loop over steps."""


class Tokens(NamedTuple):
    """Tokens of one forward of one film of the batch, by what they stand for."""

    section: int
    history: int
    image: int
    text: int

    @property
    def total(self) -> int:
        return sum(self)


class Weights(NamedTuple):
    """Bytes of a transformer's weights."""

    loop: int  # read at every step
    beside: int  # not read at every step, where steps are prepared in tables


def count_tokens(
    width: int,
    height: int,
    window: int,
    starts_with_image: bool = True,
    text: int = TEXT_TOKENS,
    image: int | None = None,
) -> Tokens:
    """Tokens for pixels and latent frames per section. image: of the vision encoder; None: SigLIP's, if it starts so.

    History is patchified by (1, 2, 2), (2, 4, 4) and (4, 8, 8), with what does not divide filled up.
    Source: arXiv 2504.12626, FP hunyuan_video_packed.py.
    """
    rows, columns = height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT

    def groups(frames: int, rate: int) -> int:
        return ceil(frames / rate) * ceil(rows / (2 * rate)) * ceil(columns / (2 * rate))

    near = HISTORY_FRAMES_1X + int(starts_with_image)
    history = groups(near, 1) + groups(HISTORY_FRAMES_2X, 2) + groups(HISTORY_FRAMES_4X, 4)
    if image is None:
        image = IMAGE_TOKENS if starts_with_image else 0
    return Tokens(groups(window, 1), history, image, text)


def forward_flops(config: FramePackConfig, tokens: int) -> float:
    """Operations of one forward: products with weights 2 (4 d^2 + 2 d m) N, attention 4 N^2 d, for every block."""
    blocks, width = config.num_layers + config.num_single_layers, config.width
    linear = 2 * (4 * width**2 + 2 * width * config.mlp_dim) * tokens
    return float(blocks * (linear + 4 * tokens**2 * width))


def activation_bytes(config: FramePackConfig, tokens: int, itemsize: int, piece: int) -> int:
    """Largest memory of a block beside its weights, for all tokens of a batch.

    Attention holds eight tensors of the blocks' width: the stream, its norm, q k v, q and k turned, the outcome.
    piece: tokens that the MLP takes at once.
    """
    return max(8 * tokens * config.width * itemsize, mlp_bytes(config, tokens, itemsize, min(piece, tokens)))


def config_weights(config: FramePackConfig, itemsize: int) -> Weights:
    """Bytes of the weights of such a transformer when every number takes itemsize bytes."""
    with torch.device("meta"):
        transformer = FramePackTransformer(config)
    loop = beside = 0
    for name, parameter in transformer.named_parameters():
        if set(STEP_PARTS).isdisjoint(name.split(".")):
            loop += parameter.numel()
        else:
            beside += parameter.numel()
    return Weights(loop * itemsize, beside * itemsize)
