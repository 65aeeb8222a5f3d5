"""A complete FramePack checkpoint set with random weights, small enough for a CPU.

Five files under the names and with the tensor names of the real ones, so that tests, examples and first tries run the
same loading code in seconds. Embedding tables keep their full row count, because the host's tokenizers are used
unchanged. Shapes are written out here by hand: this module needs torch and safetensors, not the host.
"""

import json
import math
import zlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .atomic_files import write_atomically
from .constants import LATENT_CHANNELS
from .model.config import METADATA_KEY, FramePackConfig, metadata_of
from .model.transformer import FramePackTransformer

Shapes = dict[str, tuple[int, ...]]
Gains = tuple[tuple[str, float], ...]
"""Part of a tensor name -> factor on the fan-in scaled width of its distribution; the first match counts, else 1."""


class EncoderSize(NamedTuple):
    """Width of the stream, width inside the MLP, number of layers and of attention heads."""

    width: int
    mlp_width: int
    layers: int
    heads: int


class VaeSize(NamedTuple):
    """Channels per resolution level (multiples of the 32 norm groups), residual blocks per level, latent channels."""

    channels: tuple[int, ...]
    blocks: int
    latent_channels: int


CLIP_L = EncoderSize(width=32, mlp_width=64, layers=2, heads=2)
LLAMA = EncoderSize(width=32, mlp_width=64, layers=4, heads=1)  # the prompt embedding is hidden state -3 of >= 4 layers
VISION = EncoderSize(width=36, mlp_width=72, layers=2, heads=2)
VAE = VaeSize(channels=(32, 32, 32, 64), blocks=1, latent_channels=LATENT_CHANNELS)

CLIP_VOCABULARY, CLIP_POSITIONS = 49408, 77
LLAMA_VOCABULARY, LLAMA_HEAD_DIM = 128320, 128  # the host fixes both
VISION_PATCH, VISION_GRID = 14, 4  # 4 x 4 tokens of 14 x 14 pixels: pictures of 56 x 56

GAINS: Gains = (
    ("token_embedding", math.sqrt(CLIP_L.width)),
    ("embed_tokens", math.sqrt(LLAMA.width)),
    ("position_embedding", 1.0),
    ("conv2.conv.", 0.3),  # keeps the residual branches of the VAE quiet
    ("encoder.conv_out.", 3.0),  # latents of about the real VAE's spread, 1 / 0.476986
    ("decoder.conv_out.", 0.5),  # frames spread around mid-grey without clipping
)


def write_tiny_checkpoint_set(folder: Path, seed: int = 0) -> None:
    """Writes transformer, vae, clip_l, llama and clip_vision `.safetensors` into `folder` (made if absent).

    Together 21 MB. The bytes depend on `seed` alone: each tensor draws from its own generator, uniformly, so that
    neither the order of tensors nor a CPU's logarithm and cosine can change them. Each file appears under its name only
    when it is complete. OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "transformer": (transformer_shapes(), torch.bfloat16, metadata_of(tiny_transformer_config())),
        "vae": (vae_shapes(VAE), torch.float16, None),
        "clip_l": (clip_text_shapes(CLIP_L), torch.float16, heads_metadata(CLIP_L)),
        "llama": (llama_shapes(LLAMA), torch.float16, heads_metadata(LLAMA)),
        "clip_vision": (vision_shapes(VISION), torch.float16, heads_metadata(VISION)),
    }
    for name, (shapes, dtype, metadata) in files.items():
        tensors = {key: draw(key, shape, f"{seed}/{name}").to(dtype) for key, shape in shapes.items()}
        write_atomically(folder / f"{name}.safetensors", tensors, metadata)


def tiny_transformer_config() -> FramePackConfig:
    """The released architecture, with few blocks and narrowed to the widths of the tiny encoders."""
    return FramePackConfig(
        num_attention_heads=2,
        attention_head_dim=64,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_dim=256,
        in_channels=VAE.latent_channels,
        out_channels=VAE.latent_channels,
        text_embed_dim=LLAMA.width,
        pooled_projection_dim=CLIP_L.width,
        image_proj_dim=VISION.width,
        rope_axes_dim=(16, 24, 24),
    )


def draw(key: str, shape: tuple[int, ...], stream: str, gains: Gains = GAINS) -> Tensor:
    """Random fp32 values: variance 1 / fan-in for a weight, near 1 for a norm weight, near 0 for a bias."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{stream}/{key}".encode()))
    unit = (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)  # mean 0, variance 1
    if key.endswith(".bias"):
        return unit * 0.05
    if len(shape) == 1:
        return unit * 0.1 + (1.5 if key.endswith(("norm_q.weight", "norm_k.weight")) else 1.0)
    gain = next((gain for part, gain in gains if part in key), 1.0)
    return unit * (gain / math.sqrt(math.prod(shape[1:])))


def heads_metadata(size: EncoderSize) -> dict[str, str]:
    """Safetensors metadata with what an encoder's shapes cannot tell."""
    return {METADATA_KEY: json.dumps({"num_attention_heads": size.heads})}


def transformer_shapes() -> Shapes:
    """Every tensor of the tiny transformer, named by our own module."""
    model = FramePackTransformer(tiny_transformer_config(), device="meta")
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def clip_text_shapes(size: EncoderSize) -> Shapes:
    """CLIP text model with projection."""
    return {
        "text_model.embeddings.token_embedding.weight": (CLIP_VOCABULARY, size.width),
        "text_model.embeddings.position_embedding.weight": (CLIP_POSITIONS, size.width),
        **clip_layer_shapes("text_model", size),
        **affine("text_model.final_layer_norm", size.width),
        "text_projection.weight": (size.width, size.width),
    }


def vision_shapes(size: EncoderSize, patch: int = VISION_PATCH) -> Shapes:
    """SigLIP vision model: no class token, one token for each square of `patch` pixels' side."""
    return {
        **affine("vision_model.embeddings.patch_embedding", size.width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (VISION_GRID**2, size.width),
        **clip_layer_shapes("vision_model", size),
        **affine("vision_model.post_layernorm", size.width),
    }


def clip_layer_shapes(prefix: str, size: EncoderSize) -> Shapes:
    """The layers that CLIP's text model and SigLIP's vision model share."""
    shapes: Shapes = {}
    for number in range(size.layers):
        layer = f"{prefix}.encoder.layers.{number}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= affine(f"{layer}.{norm}", size.width)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{layer}.self_attn.{projection}", size.width, size.width)
        shapes |= affine(f"{layer}.mlp.fc1", size.mlp_width, size.width)
        shapes |= affine(f"{layer}.mlp.fc2", size.width, size.mlp_width)
    return shapes


def llama_shapes(size: EncoderSize) -> Shapes:
    """LLaMA without language-model head; as many key-value heads as query heads."""
    heads_width = size.heads * LLAMA_HEAD_DIM
    shapes: Shapes = {"model.embed_tokens.weight": (LLAMA_VOCABULARY, size.width)}
    for number in range(size.layers):
        layer = f"model.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{layer}.self_attn.{projection}.weight"] = (heads_width, size.width)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (size.width, heads_width)
        for projection in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{projection}.weight"] = (size.mlp_width, size.width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (size.width, size.mlp_width)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (size.width,)
    return shapes | {"model.norm.weight": (size.width,)}


def vae_shapes(size: VaeSize) -> Shapes:
    """HunyuanVideo's causal VAE in its original naming; halves the picture between two levels of channels."""
    first, deepest, latents = size.channels[0], size.channels[-1], size.latent_channels
    last_level = len(size.channels) - 1
    shapes = convolution("encoder.conv_in", first, 3)
    width = first
    for level, channels in enumerate(size.channels):
        shapes |= residual_blocks(f"encoder.down.{level}.block", [width] + [channels] * size.blocks)
        if level < last_level:
            shapes |= convolution(f"encoder.down.{level}.downsample.conv", channels, channels)
        width = channels
    shapes |= middle("encoder", deepest) | convolution("encoder.conv_out", 2 * latents, deepest)
    shapes |= convolution("decoder.conv_in", deepest, latents) | middle("decoder", deepest)
    for level in reversed(range(len(size.channels))):
        channels = size.channels[level]
        shapes |= residual_blocks(f"decoder.up.{level}.block", [width] + [channels] * (size.blocks + 1))
        if level > 0:
            shapes |= convolution(f"decoder.up.{level}.upsample.conv", channels, channels)
        width = channels
    return {
        **shapes,
        **affine("encoder.norm_out", deepest),
        **affine("decoder.norm_out", first),
        **convolution("decoder.conv_out", 3, first),
        **affine("quant_conv", 2 * latents, 2 * latents, 1, 1, 1),
        **affine("post_quant_conv", latents, latents, 1, 1, 1),
    }


def middle(prefix: str, width: int) -> Shapes:
    """Residual block, single-head attention over all positions, residual block."""
    shapes: Shapes = {}
    for number in (1, 2):
        shapes |= residual_block(f"{prefix}.mid.block_{number}", width, width)
    shapes |= affine(f"{prefix}.mid.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        shapes |= affine(f"{prefix}.mid.attn_1.{projection}", width, width, 1, 1, 1)
    return shapes


def residual_blocks(prefix: str, widths: Iterable[int]) -> Shapes:
    """A chain of residual blocks through `widths`."""
    shapes: Shapes = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        shapes |= residual_block(f"{prefix}.{number}", before, after)
    return shapes


def residual_block(prefix: str, before: int, after: int) -> Shapes:
    """Two normed convolutions; a 1x1x1 shortcut where the width changes."""
    shapes = affine(f"{prefix}.norm1", before) | convolution(f"{prefix}.conv1", after, before)
    shapes |= affine(f"{prefix}.norm2", after) | convolution(f"{prefix}.conv2", after, after)
    return shapes if before == after else shapes | convolution(f"{prefix}.nin_shortcut", after, before, kernel=1)


def convolution(prefix: str, after: int, before: int, kernel: int = 3) -> Shapes:
    """A causal 3-D convolution: the host wraps it, hence the second `.conv`."""
    return affine(f"{prefix}.conv", after, before, kernel, kernel, kernel)


def affine(prefix: str, *weight: int) -> Shapes:
    """A weight of the given shape and a bias for its first axis."""
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}
