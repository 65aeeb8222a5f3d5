"""Sizes of a FramePack transformer, read from a checkpoint."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

METADATA_KEY = "framepack_config"
ANY_DIRECTION = "any"


@dataclass(frozen=True)
class FramePackConfig:
    """Sizes; the defaults are those of FramePackI2V_HY and FramePack_F1_I2V_HY_20250503."""

    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_dim: int = 12288
    in_channels: int = 16
    out_channels: int = 16
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    image_proj_dim: int = 1152
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)  # time, height, width
    rope_theta: float = 256.0

    @property
    def width(self) -> int:
        """Channels of the token streams."""
        return self.num_attention_heads * self.attention_head_dim

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the host's model config."""
        return asdict(self)


def metadata_of(config: FramePackConfig, direction: str | None = None) -> dict[str, str]:
    """Safetensors metadata with what tensor shapes cannot tell.

    direction: "backward", "forward" or ANY_DIRECTION, if the file shall say which films it was trained for.
    """
    entry: dict[str, Any] = {"rope_axes_dim": config.rope_axes_dim, "rope_theta": config.rope_theta}
    return {METADATA_KEY: json.dumps(entry if direction is None else {**entry, "direction": direction})}


def read_config(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None, prefix: str = ""
) -> FramePackConfig:
    """Sizes from tensor shapes (key -> shape) and safetensors metadata.

    Without metadata the RoPE axes are split as in the released models, 1/8 time and 7/16 each for height
    and width. Raises ValueError when the parts do not fit, KeyError when a needed tensor is absent.
    """

    def size(key: str, axis: int) -> int:
        return int(shapes[prefix + key][axis])

    width = size("x_embedder.proj.bias", 0)
    head_dim = size("transformer_blocks.0.attn.norm_q.weight", 0)
    extra = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
    usual_axes = (head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16)
    axes = tuple(int(axis) for axis in extra.get("rope_axes_dim", usual_axes))
    if width % head_dim or len(axes) != 3 or sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise ValueError(
            f"This FramePack checkpoint has width {width}, heads of {head_dim} and RoPE axes {axes}; the width must "
            f"be a multiple of the head and the three even axes must add up to it. Its metadata "
            f"'{METADATA_KEY}' should hold rope_axes_dim."
        )
    # biases where there is a choice: quantised files keep them in their plain shape
    return FramePackConfig(
        num_attention_heads=width // head_dim,
        attention_head_dim=head_dim,
        num_layers=count_blocks(shapes, prefix + "transformer_blocks."),
        num_single_layers=count_blocks(shapes, prefix + "single_transformer_blocks."),
        num_refiner_layers=count_blocks(shapes, prefix + "context_embedder.token_refiner.refiner_blocks."),
        mlp_dim=size("transformer_blocks.0.ff.net.0.proj.bias", 0),
        in_channels=size("x_embedder.proj.weight", 1),
        out_channels=size("proj_out.bias", 0) // 4,
        text_embed_dim=size("context_embedder.proj_in.weight", 1),
        pooled_projection_dim=size("time_text_embed.text_embedder.linear_1.weight", 1),
        image_proj_dim=size("image_projection.up.weight", 1),
        rope_axes_dim=axes,  # pyright: ignore[reportArgumentType]  # length checked above
        rope_theta=float(extra.get("rope_theta", 256.0)),
    )


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """One more than the highest number after the prefix, 0 when there is none."""
    numbers = {int(key[len(prefix) :].split(".", 1)[0]) for key in keys if key.startswith(prefix)}
    return max(numbers, default=-1) + 1
