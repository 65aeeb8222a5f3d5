"""Other implementations with our weights: diffusers' class from PyPI, and the original's from a checkout."""

import importlib.machinery
import importlib.util
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from framepack_pack.framepack_core.model.config import FramePackConfig
from torch import Tensor

from .meters import CardWatch, Stopwatch, host_memory
from .rows import MissingPieceError, Row
from .setting import COMPARED_STEPS, module_inputs, new_film, on_device, random_weights


def run_peer(row: Row, options: Any, config: FramePackConfig, device: torch.device) -> tuple[dict, list[Tensor]]:
    """Figures of the row, and its outputs at the compared steps."""
    dtype = getattr(torch, row.dtype)
    torch.backends.cudnn.allow_tf32 = False  # the float32 reference is meant
    begun = time.perf_counter()
    model, call = load_peer(row, options, config, device, dtype)
    loading = time.perf_counter() - begun
    film = new_film(config, options.width, options.height)
    inputs = [on_device(module_inputs(config, film, step), device, dtype) for step in COMPARED_STEPS]
    watch = Stopwatch(device)
    with CardWatch(device) as card:
        outputs = [watch.time(lambda given=given: call(model, given)) for given in inputs]
        if row.measure != "reference":
            for _ in range(options.warm_up + options.timed):
                watch.time(lambda: call(model, inputs[0]))
    times = watch.milliseconds()
    figures = {"load_s": loading, "first_ms": times[0], "steps_ms": times[-options.timed :]}
    return {**figures, **card.figures(), **host_memory()}, [out.float().cpu() for out in outputs]


def load_peer(row: Row, options: Any, config: FramePackConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with our random weights, and the function that calls it."""
    if row.swapped and device.type != "cuda":
        raise MissingPieceError("DynamicSwap needs CUDA")
    if row.compiled and device.type != "cuda":
        raise MissingPieceError("compiling is measured on CUDA only; on a CPU it takes many minutes")
    peer_class, call = _diffusers() if row.kind == "diffusers" else _original(options.original)
    with torch.device("meta"):
        model = peer_class(**sizes(config), has_image_proj=True, has_clean_x_embedder=True)
    weights = dict(random_weights(config, device, dtype))
    if row.swapped:
        weights = {key: weights.pop(key).cpu() for key in list(weights)}
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False).eval()
    if row.kind == "original":
        vars(model)["high_quality_fp32_output_for_inference"] = True  # as FP demo_gradio.py
    if row.swapped:
        from diffusers_helper.memory import DynamicSwapInstaller

        DynamicSwapInstaller.install_model(model, device=device)
    if row.compiled:
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.compile()
    return model, call


def sizes(config: FramePackConfig) -> dict[str, Any]:
    """Our config in the words that both classes share."""
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.attention_head_dim,
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "num_refiner_layers": config.num_refiner_layers,
        "mlp_ratio": config.mlp_dim / config.width,
        "text_embed_dim": config.text_embed_dim,
        "pooled_projection_dim": config.pooled_projection_dim,
        "image_proj_dim": config.image_proj_dim,
        "rope_axes_dim": config.rope_axes_dim,
        "rope_theta": config.rope_theta,
    }


def _diffusers() -> tuple[Any, Any]:
    try:
        from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
            HunyuanVideoFramepackTransformer3DModel,
        )
    except ImportError as error:
        raise MissingPieceError(f"diffusers cannot be imported ({error})") from error
    return HunyuanVideoFramepackTransformer3DModel, call_diffusers


def _original(checkout: Path | None) -> tuple[Any, Any]:
    if checkout is None:
        raise MissingPieceError("name a checkout of lllyasviel/FramePack with --original")
    sys.path.insert(0, str(checkout))
    if importlib.util.find_spec("cv2") is None:
        stub = types.ModuleType("cv2")  # its utils import it; the transformer does not use it
        stub.__spec__ = importlib.machinery.ModuleSpec("cv2", None)
        sys.modules["cv2"] = stub
    from diffusers_helper.models.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

    return HunyuanVideoTransformer3DModelPacked, call_original


def call_diffusers(model: Any, given: dict) -> Tensor:
    device = given["x"].device
    section, near, middle, far = (torch.tensor(indices, device=device) for indices in given["frame_indices"])
    return model(
        hidden_states=given["x"],
        timestep=given["timestep"],
        encoder_hidden_states=given["context"],
        encoder_attention_mask=torch.ones(given["context"].shape[:2], dtype=torch.bool, device=device),
        pooled_projections=given["y"],
        image_embeds=given["image_embeds"],
        guidance=given["guidance"],
        indices_latents=section,
        latents_clean=given["history_1x"],
        indices_latents_clean=near,
        latents_history_2x=given["history_2x"],
        indices_latents_history_2x=middle,
        latents_history_4x=given["history_4x"],
        indices_latents_history_4x=far,
        return_dict=False,
    )[0]


def call_original(model: Any, given: dict) -> Tensor:
    device = given["x"].device
    section, near, middle, far = (torch.tensor([indices], device=device) for indices in given["frame_indices"])
    return model(
        hidden_states=given["x"],
        timestep=given["timestep"],
        encoder_hidden_states=given["context"],
        encoder_attention_mask=torch.ones(given["context"].shape[:2], dtype=torch.bool, device=device),
        pooled_projections=given["y"],
        guidance=given["guidance"],
        image_embeddings=given["image_embeds"],
        latent_indices=section,
        clean_latents=given["history_1x"],
        clean_latent_indices=near,
        clean_latents_2x=given["history_2x"],
        clean_latent_2x_indices=middle,
        clean_latents_4x=given["history_4x"],
        clean_latent_4x_indices=far,
        return_dict=False,
    )[0]
