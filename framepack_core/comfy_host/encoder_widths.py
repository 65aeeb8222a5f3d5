"""Features of an encoder that does not belong to the transformer: told by their width, refused with both files' names.

A CONDITIONING does not say which file its encoder came from. The width does, for all encoders that people have.
"""

from typing import Any, NamedTuple

from ..model.config import FramePackConfig

DEMO = "of the demo checkpoint"
RANDOM = "of scripts/make_tiny_checkpoint.py"


class Encoder(NamedTuple):
    """What an encoder makes, the files that make it by their width, and how to make it right."""

    features: str
    files: dict[int, str]
    remedy: str


_PROMPT = (
    "Encode the prompt with the CLIP that belongs to the transformer: DualCLIPLoader, type hunyuan_video, with clip_l "
    "and llava_llama3 for a released FramePack, all of Load FramePack Demo for the demo."
)
TEXT = Encoder(
    "text features",
    {
        32: f"llama.safetensors {RANDOM}",
        64: f"llama.safetensors {DEMO}",
        768: "clip_l",
        2048: "clip_l and clip_g",
        3584: "qwen_2.5_vl_7b",
        4096: "llava_llama3",
    },
    _PROMPT,
)
POOLED = Encoder(
    "pooled features",
    {
        32: f"clip_l.safetensors {RANDOM}",
        64: f"clip_l.safetensors {DEMO}",
        768: "clip_l",
        1280: "clip_g",
        2048: "clip_l and clip_g",
    },
    _PROMPT,
)
VISION = Encoder(
    "vision features",
    {
        36: f"clip_vision.safetensors {RANDOM}",
        64: f"clip_vision.safetensors {DEMO}",
        1024: "clip_vision_l",
        1152: "sigclip_vision_patch14_384",
        1280: "clip_vision_h",
        1664: "clip_vision_g",
    },
    "Use the CLIP_VISION that belongs to the transformer: Load CLIP Vision with sigclip_vision_patch14_384 for a "
    "released FramePack, that of Load FramePack Demo for the demo.",
)


def check_prompt(name: str, transformer: str, sizes: FramePackConfig, cond: Any, pooled: Any) -> None:
    """Raises ValueError unless text features [B, L, width] and pooled features [B, width] fit the transformer."""
    _check(name, transformer, TEXT, sizes.text_embed_dim, cond)
    _check(name, transformer, POOLED, sizes.pooled_projection_dim, pooled)


def check_vision(name: str, transformer: str, sizes: FramePackConfig, features: Any) -> None:
    """Raises ValueError unless vision features [B, tokens, width] fit the transformer."""
    _check(name, transformer, VISION, sizes.image_proj_dim, features)


def _check(name: str, transformer: str, encoder: Encoder, needed: int, features: Any) -> None:
    got = None if features is None else features.shape[-1]
    if got != needed:
        raise ValueError(
            f"{name} has {encoder.features} of width {got} ({_file(encoder, got)}), but {transformer} needs width "
            f"{needed} ({_file(encoder, needed)}). {encoder.remedy}"
        )


def _file(encoder: Encoder, width: int | None) -> str:
    return "none at all" if width is None else encoder.files.get(width, "an unknown encoder")
