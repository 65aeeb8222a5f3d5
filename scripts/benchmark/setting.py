"""Random weights and inputs of a section: pure functions of the seed, the same in every process."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from framepack_pack.framepack_core.atomic_files import stream_atomically
from framepack_pack.framepack_core.history import History, new_history
from framepack_pack.framepack_core.model.config import FramePackConfig, metadata_of
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.packing import pack_history
from framepack_pack.framepack_core.schedule import section_noise, section_sigmas
from framepack_pack.framepack_core.section_plan import SectionPlan, plan_backward
from torch import Tensor

TEXT_TOKENS, IMAGE_TOKENS, STEPS, COMPARED_STEPS = 100, 729, 25, (0, 12)

CONFIGS = {
    "13b": FramePackConfig(),
    "tiny": FramePackConfig(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2, num_refiner_layers=2,
        mlp_dim=128, text_embed_dim=32, pooled_projection_dim=16, image_proj_dim=32, rope_axes_dim=(4, 6, 6),
    ),
}  # fmt: skip


def random_weights(config: FramePackConfig, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Rounded to bf16, made on the device. q/k norms are about 1.5, so that attention is not flat."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in FramePackTransformer(config).state_dict().items()}
    for key, shape in shapes.items():
        generator = torch.Generator(device).manual_seed(zlib.crc32(key.encode()))
        values = torch.randn(shape, generator=generator, device=device)
        if "norm" in key and len(shape) == 1 and "linear" not in key:
            centre = 1.5 if shape[0] == config.attention_head_dim else 1.0
            values = (0.0 if key.endswith("bias") else centre) + 0.1 * values
        else:
            values *= 1.0 / shape[1:].numel() ** 0.5 if len(shape) > 1 else 0.02
        yield key, values.to(torch.bfloat16).to(dtype)


def weights_file(scratch: Path, config_name: str, device: torch.device) -> Path:
    """The weights as a safetensors file for the host's loader, written once per machine."""
    path = scratch / f"FramePack_random_{config_name}_{device.type}.safetensors"
    if not path.exists():
        config = CONFIGS[config_name]
        stream_atomically(path, random_weights(config, device, torch.bfloat16), metadata_of(config))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return path


def new_film(
    config: FramePackConfig, width: int, height: int, sections: int = 4,
    plan: Callable[[int, int], SectionPlan] = plan_backward,
) -> History:  # fmt: skip
    """An empty film: its first section sees a start image and zeros for what is not there yet."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, 16, 1, height // 8, width // 8, generator=generator)
    embeds = torch.randn(1, IMAGE_TOKENS, config.image_proj_dim, generator=generator)
    return new_history(plan(sections, 9), 0, width, height, start, image_embeds=embeds)


def prompt(config: FramePackConfig, seed: int = 2) -> list:
    """A CONDITIONING of random features."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, TEXT_TOKENS, config.text_embed_dim, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, config.pooled_projection_dim, generator=generator)}]]


def module_inputs(config: FramePackConfig, history: History, step: int) -> dict[str, Any]:
    """What the transformer gets at a step of the first section; float32 of bf16 values, as the original rounds."""
    sigma = section_sigmas(history, STEPS)[step]
    noise = section_noise(history)
    clean = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3)) * 0.5
    packed = pack_history(history, history.plan.sections[0]).scaled()
    (text, entry), *_ = prompt(config)
    tensors = {
        "x": sigma * noise + (1 - sigma) * clean,
        "timestep": sigma.reshape(1) * 1000,
        "context": text,
        "y": entry["pooled_output"],
        "guidance": torch.tensor([10000.0]),
        "history_1x": packed.history_1x,
        "history_2x": packed.history_2x,
        "history_4x": packed.history_4x,
        "image_embeds": history.image_embeds,
    }
    rounded = {name: tensor.to(torch.bfloat16).float() for name, tensor in tensors.items()}
    return {**rounded, "frame_indices": packed.indices}


def on_device(inputs: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs where the module computes."""
    return {key: value.to(device, dtype) if torch.is_tensor(value) else value for key, value in inputs.items()}
