"""Loads a whole checkpoint set - MODEL, CLIP, VAE, CLIP_VISION - of any size through ComfyUI's own classes.

Core recognises the full-size encoders and VAE by fixed sizes. A text or vision encoder with our metadata entry
METADATA_KEY has other sizes: they are read from its tensor shapes, and the number of heads, which no shape tells, from
that entry. A file without the entry goes to core untouched, so real files load here as in core's loader nodes.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ..affine_norm import AFFINE, use_affine_norms
from ..constants import FRAMES_PER_LATENT, LATENT_CHANNELS, PIXELS_PER_LATENT
from ..embedding_rows import ROWS_ENTRY, whole_shapes, whole_tables
from ..known_words import KNOWN_WORDS_ENTRY
from ..model.checkpoint import read_header
from ..model.config import METADATA_KEY
from .checkpoints import load_transformer
from .text_encoding import KnownWordsTokenizer

Shapes = dict[str, tuple[int, ...]]

FULL_VAE_WIDTH = 128
LLAMA_HEAD_DIM = 128


class CheckpointSet(NamedTuple):
    """What the four sockets MODEL, CLIP, VAE and CLIP_VISION carry."""

    model: Any
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    clip_vision: comfy.clip_vision.ClipVisionModel


def load_checkpoint_set(folder: Path) -> CheckpointSet:
    """Loads `transformer`, `clip_l`, `llama`, `vae` and `clip_vision` `.safetensors` from `folder`.

    Before anything is loaded, FileNotFoundError names the first file that is missing. ValueError names a file that is
    cut off, RuntimeError one whose tensors do not make up its model.
    """
    transformer = _existing(folder / "transformer.safetensors", "the FramePack transformer (MODEL)")
    clip_l = _existing(folder / "clip_l.safetensors", "the CLIP-L text encoder (CLIP)")
    llama = _existing(folder / "llama.safetensors", "the LLaMA text encoder (CLIP)")
    vae = _existing(folder / "vae.safetensors", "the HunyuanVideo VAE (VAE)")
    clip_vision = _existing(folder / "clip_vision.safetensors", "the SigLIP vision encoder (CLIP_VISION)")
    return CheckpointSet(
        model=load_transformer(transformer),
        clip=load_text_encoders(clip_l, llama),
        vae=load_vae(vae),
        clip_vision=load_clip_vision(clip_vision),
    )


def load_text_encoders(clip_l_path: Path, llama_path: Path) -> comfy.sd.CLIP:
    """CLIP of type HunyuanVideo: encodes a prompt to [1, L, llama width] with `pooled_output` [1, clip_l width]."""
    clip_l_shapes, clip_l_config = _describe(_existing(clip_l_path, "the CLIP-L text encoder (CLIP)"))
    llama_shapes, llama_config = _describe(_existing(llama_path, "the LLaMA text encoder (CLIP)"))
    overrides = {}
    if clip_l_config is not None:
        # Core's support of long CLIP replaces "clip_l_model_config" by "model_config" (text_encoders/long_clipl.py).
        overrides["model_config"] = overrides["clip_l_model_config"] = _clip_text_config(clip_l_shapes, clip_l_config)
    if llama_config is not None:
        overrides["llama_model_config"] = _llama_config(llama_shapes)
    clip = _load_clip([clip_l_path, llama_path], [clip_l_config, llama_config], overrides)
    if clip_l_config is not None:
        _check_keys(clip_l_path, clip_l_shapes, clip.cond_stage_model.clip_l.transformer.state_dict())
    if llama_config is not None:
        _check_keys(llama_path, llama_shapes, clip.cond_stage_model.llama.transformer.state_dict())
        if KNOWN_WORDS_ENTRY in llama_config:
            clip.tokenizer = KnownWordsTokenizer(clip.tokenizer, llama_config[KNOWN_WORDS_ENTRY])
    return clip


def _load_clip(
    paths: list[Path], entries: list[dict[str, Any] | None], overrides: dict[str, Any], disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """Core's load_clip, except that tables of which the files store some rows are made whole in between."""
    clip_type = comfy.sd.CLIPType.HUNYUAN_VIDEO
    if not any(ROWS_ENTRY in (entry or {}) for entry in entries):
        return comfy.sd.load_clip([str(path) for path in paths], clip_type=clip_type, model_options=overrides)
    state_dicts = [
        whole_tables(comfy.utils.load_torch_file(str(path), safe_load=True), (entry or {}).get(ROWS_ENTRY, {}))
        for path, entry in zip(paths, entries, strict=True)
    ]
    load = comfy.sd.load_text_encoder_state_dicts
    extra = {"disable_dynamic": True} if disable_dynamic else {}  # ComfyUI 0.3.75 does not know it and never asks
    clip = load(state_dicts, clip_type=clip_type, model_options=overrides, **extra)
    clip.patcher.cached_patcher_init = (_reload_clip_patcher, (paths, entries, overrides))
    return clip


def _reload_clip_patcher(*arguments: Any, disable_dynamic: bool = False) -> Any:
    """What newer hosts call for a second copy of the weights."""
    return _load_clip(*arguments, disable_dynamic=disable_dynamic).patcher


def load_vae(path: Path) -> comfy.sd.VAE:
    """VAE of HunyuanVideo's kind: frames [4(T-1)+1, 8h, 8w, 3] to and from latents [1, 16, T, h, w].

    The sizes of a narrower one are read from its shapes; the 4x compression in time is the architecture's.
    """
    shapes, config = _describe(_existing(path, "the HunyuanVideo VAE (VAE)"))
    state_dict = comfy.utils.load_torch_file(str(path))
    width = shapes.get("encoder.conv_in.conv.weight", (FULL_VAE_WIDTH,))[0]
    if width == FULL_VAE_WIDTH:  # also the naming of diffusers, which lacks that tensor and which core converts
        return comfy.sd.VAE(sd=state_dict)
    ddconfig = _vae_config_of(shapes)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    vae = comfy.sd.VAE(
        sd=state_dict,
        config={"params": {"ddconfig": ddconfig, "embed_dim": shapes["post_quant_conv.weight"][1]}},
        dtype=comfy.model_management.vae_dtype(comfy.model_management.vae_device(), dtypes),
    )
    _check_keys(path, shapes, vae.first_stage_model.state_dict())
    if (config or {}).get("norms") == AFFINE:
        use_affine_norms(vae.first_stage_model)
    vae.working_dtypes = dtypes
    _mark_as_video(vae, ddconfig["z_channels"], width / FULL_VAE_WIDTH)
    return vae


def load_clip_vision(path: Path) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION of SigLIP's kind: a picture to `last_hidden_state` [1, tokens, width]. RuntimeError if it is none."""
    shapes, config = _describe(_existing(path, "the SigLIP vision encoder (CLIP_VISION)"))
    if config is None:
        encoder = comfy.clip_vision.load(str(path))
        if encoder is None:
            raise RuntimeError(f"{path} is no vision encoder that ComfyUI knows; load sigclip_vision_patch14_384.")
        return encoder
    with tempfile.TemporaryDirectory() as folder:  # the class takes the path of a JSON file
        json_path = Path(folder) / "clip_vision.json"
        json_path.write_text(json.dumps(_vision_config(shapes, config)), encoding="utf-8")
        encoder = comfy.clip_vision.ClipVisionModel(str(json_path))
    # what the loading itself reports: with dynamic VRAM a layer has no weights to compare before it is loaded
    missing, unexpected = encoder.load_sd(comfy.utils.load_torch_file(str(path)))
    _check_fit(path, missing, unexpected)
    return encoder


def _existing(path: Path, purpose: str) -> Path:
    if path.is_file():
        return path
    raise FileNotFoundError(f"{path.name} is missing in {path.parent}: it holds {purpose}.")


def _describe(path: Path) -> tuple[Shapes, dict[str, Any] | None]:
    """Shapes of all tensors, and our metadata entry if the file has one; reads the header only."""
    header = read_header([path])
    if METADATA_KEY not in header.metadata:
        return header.shapes, None
    entry = json.loads(header.metadata[METADATA_KEY])
    return whole_shapes(header.shapes, entry.get(ROWS_ENTRY, {})), entry


def _check_keys(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    _check_fit(path, sorted(set(expected) - set(found)), sorted(set(found) - set(expected)))


def _check_fit(path: Path, missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        raise RuntimeError(
            f"{path} does not fit its model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; write or download the file again."
        )


def _count(shapes: Shapes, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... exist."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _clip_layers_config(shapes: Shapes, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    mlp_width, width = shapes[f"{prefix}.encoder.layers.0.mlp.fc1.weight"]
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": _count(shapes, prefix + ".encoder.layers.{}.mlp.fc1.weight"),
        "num_attention_heads": config["num_attention_heads"],
    }


def _clip_text_config(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    positions = shapes["text_model.embeddings.position_embedding.weight"][0]
    return {**_clip_layers_config(shapes, "text_model", config), "max_position_embeddings": positions}


def _llama_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "model.layers.{}.mlp.gate_proj.weight"),
        "num_attention_heads": shapes["model.layers.0.self_attn.q_proj.weight"][0] // LLAMA_HEAD_DIM,
        "num_key_value_heads": shapes["model.layers.0.self_attn.k_proj.weight"][0] // LLAMA_HEAD_DIM,
    }


def _vision_config(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    _, channels, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    tokens = shapes["vision_model.embeddings.position_embedding.weight"][0]
    return {
        **_clip_layers_config(shapes, "vision_model", config),
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": channels,
        "patch_size": patch,
        "image_size": math.isqrt(tokens) * patch,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _vae_config_of(shapes: Shapes) -> dict[str, Any]:
    width, image_channels = shapes["encoder.conv_in.conv.weight"][:2]
    levels = _count(shapes, "encoder.down.{}.block.0.conv1.conv.weight")
    level_widths = [shapes[f"encoder.down.{level}.block.0.conv1.conv.weight"][0] for level in range(levels)]
    return vae_config(
        width,
        [level_width // width for level_width in level_widths],
        _count(shapes, "encoder.down.0.block.{}.conv1.conv.weight"),
        shapes["decoder.conv_in.conv.weight"][1],
        image_channels,
    )


def vae_config(
    width: int, multiples: list[int], blocks: int, latent_channels: int = LATENT_CHANNELS, image_channels: int = 3
) -> dict[str, Any]:
    """`ddconfig` of the host's AutoencoderKL: levels of `width` times a multiple, each of so many residual blocks."""
    return {
        "double_z": True,
        "z_channels": latent_channels,
        "resolution": 256,
        "in_channels": image_channels,
        "out_ch": image_channels,
        "ch": width,
        "ch_mult": multiples,
        "num_res_blocks": blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
        "conv3d": True,
        "time_compress": FRAMES_PER_LATENT,
    }


def _mark_as_video(vae: comfy.sd.VAE, latent_channels: int, relative_width: float) -> None:
    """Sets what core sets on the full-size VAE (comfy/sd.py, branch "decoder.conv_in.conv.weight").

    The memory estimates, in bytes, lie above those of every supported core, which differ, times `relative_width`.
    """
    vae.latent_dim = 3
    vae.latent_channels = latent_channels
    vae.upscale_ratio = (lambda latent_frames: max(0, latent_frames * 4 - 3), PIXELS_PER_LATENT, PIXELS_PER_LATENT)
    vae.upscale_index_formula = (FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), PIXELS_PER_LATENT, PIXELS_PER_LATENT)
    vae.downscale_index_formula = (FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT)

    def bytes_to_encode(shape: tuple[int, ...], dtype: torch.dtype) -> float:  # [B, 3, F, H, W]
        return 1400 * relative_width * max(shape[2], 2) * math.prod(shape[3:5]) * dtype.itemsize

    def bytes_to_decode(shape: tuple[int, ...], dtype: torch.dtype) -> float:  # [B, C, F, h, w]
        pixels = math.prod(shape[2:5]) * FRAMES_PER_LATENT * PIXELS_PER_LATENT**2
        return 2800 * relative_width * pixels * dtype.itemsize

    vae.memory_used_encode = bytes_to_encode
    vae.memory_used_decode = bytes_to_decode
