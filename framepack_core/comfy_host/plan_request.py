"""The planner's request and machine, read from MODEL, history, prompts, VAE and the host."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_management
import psutil
import torch

from ..constants import LATENT_CHANNELS, PIXELS_PER_LATENT
from ..history import History, section_shape
from ..model.config import FramePackConfig
from ..packing import pack_history
from ..planning.cards import CARDS, find_card
from ..planning.cost import TEXT_TOKENS, Weights, config_weights
from ..planning.request import Machine, Request
from ..vae.decoder import MIDDLE, PIECE
from .conditioning import CHECKPOINT_ATTACHMENT, Conditioning, check_framepack, entries_for
from .frames import check_vae
from .native_model import HISTORY_KEY
from .run_record import card_name
from .step_skipping import FOREIGN_OPTIONS, PATCH
from .vae_decoder import own_decoder

THIS_MACHINE = "this machine"
GIB = 2**30
COMPILE_PATCH = "torch.compile"  # key of core's TorchCompileModel
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class ModelFacts(NamedTuple):
    """What a MODEL says about itself; fields of Request."""

    config: FramePackConfig
    weights: Weights
    checkpoint: str
    checkpoint_direction: Any
    skippers: tuple[str, ...]
    quantisers: tuple[str, ...]
    compiled: bool
    has_loras: bool


def model_facts(model: Any) -> ModelFacts:
    """Reads no weights. Raises ValueError for a MODEL that is not FramePack."""
    check_framepack(model)
    checkpoint, direction = model.attachments.get(CHECKPOINT_ATTACHMENT, ("the checkpoint", None))
    loop = model.model_size()
    return ModelFacts(
        config=model.model.diffusion_model.config,
        weights=Weights(loop, comfy.model_management.module_size(model.model) - loop),
        checkpoint=checkpoint,
        checkpoint_direction=direction,
        skippers=_skippers(model),
        quantisers=_quantisers(model),
        compiled=bool(model.get_wrappers("apply_model", COMPILE_PATCH)),
        has_loras=bool(model.patches),
    )


def unknown_model(itemsize: int) -> ModelFacts:
    """The released checkpoints, with weights of itemsize bytes."""
    config = FramePackConfig()
    return ModelFacts(config, config_weights(config, itemsize), "the checkpoint", None, (), (), False, False)


def read_request(
    history: History,
    facts: ModelFacts,
    positive: Conditioning | None = None,
    vae: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> Request:
    """settings: fields of Request that are not read from the rest, or replace what is.

    Raises ValueError for another VAE and for prompts outside the film.
    """
    batch, height, width = history.shape
    starts = history.start_latent is not None
    vision = history.image_embeds is not None or any("clip_vision_output" in entry[1] for entry in positive or ())
    read = Request(
        plan=history.plan,
        width=width * PIXELS_PER_LATENT,
        height=height * PIXELS_PER_LATENT,
        batch=batch,
        made=history.draws,
        starts_with_image=starts,
        has_vision=vision,
        has_end_image=history.end_latent is not None,
        prompts=_prompts(positive, history),
        text_tokens=max((entry[0].shape[1] for entry in positive), default=0) if positive else TEXT_TOKENS,
        image_tokens=None if history.image_embeds is None else history.image_embeds.shape[1],
        decode_bytes=None if vae is None else _decode_bytes(vae, history),
        **facts._asdict(),
    )
    return replace(read, **(settings or {}))


def read_machine(card: str, vram_gb: float, model: Any, history: History) -> Machine:
    """This machine, or one with a card of the table. vram_gb: GiB that may be used instead of all; 0: all."""
    device = comfy.model_management.get_torch_device()
    name = card_name(device) if card == THIS_MACHINE else card
    known = find_card(name) if card == THIS_MACHINE else CARDS[card]
    if vram_gb:
        vram = round(vram_gb * GIB)
    elif card != THIS_MACHINE:
        vram = CARDS[card].vram - comfy.model_management.extra_reserved_memory()
    else:
        vram = None if device.type == "cpu" else _usable(device)
    return Machine(
        card=name,
        vram=vram,
        ram=psutil.virtual_memory().available,
        tflops=None if known is None else known.tflops,
        link=None if known is None else known.link,
        reserve=_reserve(model, history),
    )


def _usable(device: torch.device) -> int:
    """Bytes that are free or hold models that the host would take off."""
    loaded = sum(
        part.model_loaded_memory() for part in comfy.model_management.current_loaded_models if part.device == device
    )
    return comfy.model_management.get_free_memory(device) + loaded


def _reserve(model: Any, history: History) -> int | None:
    """What the host keeps free of weights for a forward: its own estimate, or None where it moves them by need."""
    is_dynamic = getattr(model, "is_dynamic", None)  # not in ComfyUI 0.3.75
    if model is None or (is_dynamic and is_dynamic()):
        return None
    host = comfy.model_management
    section = history.plan.sections[min(history.draws, len(history.sections) - 1)]
    shapes = model.model.extra_conds_shapes(**{HISTORY_KEY: pack_history(history, section)})
    estimate = model.model.memory_required(
        list(section_shape(history)), cond_shapes={name: [shape] for name, shape in shapes.items()}
    )
    return round(max(host.minimum_inference_memory(), estimate + host.extra_reserved_memory()))


def _prompts(positive: Conditioning | None, history: History) -> tuple[str, ...]:
    """For each section in film order, the numbers of the entries that hold for it."""
    if not positive:
        return ()
    numbers = {id(entry): str(number) for number, entry in enumerate(positive, start=1)}
    by_place = sorted(history.plan.sections, key=history.plan.place)
    chosen = [[numbers[id(entry)] for entry in entries_for(positive, history, section)] for section in by_place]
    return tuple(f"prompt {' and '.join(entries)}" for entries in chosen)


def _decode_bytes(vae: Any, history: History) -> int:
    """Estimate for a section with its neighbour and the start image: the host's, or that of our own decoder."""
    check_vae(vae)
    _, height, width = history.shape
    latents = min(2, len(history.sections)) * history.plan.window + 1
    own = own_decoder(vae)
    if own is not None:
        return own.need(height, width, PIECE, min(latents, MIDDLE))
    return round(vae.memory_used_decode((1, LATENT_CHANNELS, latents, height, width), vae.vae_dtype))


def _skippers(model: Any) -> tuple[str, ...]:
    options = model.model_options.get("transformer_options", {})
    own = [getattr(patch, "name", "step skipping") for patch in model.get_wrappers("outer_sample", PATCH)]
    core = [getattr(options["easycache"], "name", "EasyCache")] if "easycache" in options else []
    return (*own, *core, *(name for key, name in FOREIGN_OPTIONS.items() if key in options))


def _quantisers(model: Any) -> tuple[str, ...]:
    found = []
    if any(parameter.dtype in FP8 for parameter in model.model.diffusion_model.parameters()):
        found.append("fp8")
    if "gguf" in type(model).__name__.lower():
        found.append("GGUF")
    return tuple(found)
