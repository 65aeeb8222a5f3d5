"""Write a MODEL's transformer with its block weights quantised and its LoRAs merged in, one tensor at a time."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_management
import comfy.quant_ops
import comfy.utils
import torch
from torch import Tensor

from ..atomic_files import stream_atomically
from ..model.checkpoint import SOURCE_METADATA, tensor_names
from ..model.config import metadata_of
from ..model.quantisation import ROWWISE, StoredFormat, is_block_layer
from .conditioning import CHECKPOINT_ATTACHMENT, check_framepack
from .fp8_layout import is_rows
from .quantised_weights import INT8, RECIPES, check_recipe

PREFIX = "diffusion_model."  # the host's name of the transformer within a MODEL

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """The file, and the number of its tensors that hold a LoRA or another patch."""

    path: Path
    merged: int


def save_quantised(model: Any, recipe: str, path: Path) -> Saved:
    """Raises ValueError for another model than FramePack and for two quantisers, FileExistsError."""
    check_savable(model, recipe)
    config = model.model.diffusion_model.config
    names = tensor_names(config)
    merged = sum(PREFIX + name in model.patches for name in names)
    source, direction = model.attachments.get(CHECKPOINT_ATTACHMENT, ("unknown", None))
    origin = {"format": recipe, "source": source, "merged_patches": merged}
    metadata = metadata_of(config, None if direction is None else direction.value)
    stream_atomically(path, _tensors(model, recipe, names), {**metadata, SOURCE_METADATA: json.dumps(origin)})
    logger.info("%s: %s of %s; patches are merged into %d of its tensors.", path.name, recipe, source, merged)
    return Saved(path, merged)


def check_savable(model: Any, recipe: str) -> None:
    """What save_quantised raises, before a file is opened."""
    check_framepack(model)
    if getattr(model, "weight_wrapper_patches", None):
        raise ValueError(
            "Another node changes this model's weights by a function, which a file cannot hold; remove it."
        )
    check_recipe(recipe, loaded_format(model), "The model")


def loaded_format(model: Any) -> StoredFormat:
    """Precision of the block weights as they are in memory."""
    for name, layer in model.model.diffusion_model.named_modules():
        if not is_block_layer(name):
            continue
        weight = layer.weight
        if is_rows(weight):
            return StoredFormat(ROWWISE, True)
        if isinstance(weight, comfy.quant_ops.QuantizedTensor):
            form = getattr(layer, "quant_format", "float8_e4m3fn")
            return StoredFormat(INT8 if form == "int8_tensorwise" else form, True)
        if hasattr(weight, "tensor_type") or not weight.is_floating_point():
            return StoredFormat(f"GGUF {getattr(weight, 'tensor_type', weight.dtype)}", True)
        if weight.element_size() == 1:
            return StoredFormat("fp8", True)
    return StoredFormat("plain", False)


def _tensors(model: Any, recipe: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the file. Patched weights are merged in float32 on the card, then rounded once."""
    device = comfy.model_management.get_torch_device()
    bar = comfy.utils.ProgressBar(len(names))
    for done, name in enumerate(names, start=1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        layer_name, _, kind = name.rpartition(".")
        layer = model.model.diffusion_model.get_submodule(layer_name)
        weight, patches = _original(model, layer, name, kind), model.patches.get(PREFIX + name)
        is_quantised = isinstance(weight, comfy.quant_ops.QuantizedTensor)
        quantises = kind == "weight" and is_block_layer(layer_name)
        if is_quantised and not patches:
            own = layer.state_dict()
            yield from ((f"{layer_name}.{key}", own[key]) for key in own if key != "bias")
        elif quantises or is_quantised:
            plain = _merged(layer, weight, patches, PREFIX + name, device)
            yield from ((f"{layer_name}.{key}", part) for key, part in RECIPES[recipe].quantise(plain).items())
        else:
            plain = _merged(layer, weight, patches, PREFIX + name, device) if patches else weight
            yield name, plain.to(torch.bfloat16)  # the checkpoints' dtype, also where the host computes in another
        bar.update_absolute(done)


def _original(model: Any, layer: Any, name: str, kind: str) -> Tensor:
    """The weight without patches, also while the host has them merged in place."""
    kept = model.backup.get(PREFIX + name)
    return getattr(layer, kind) if kept is None else kept.weight


def _merged(layer: Any, weight: Tensor, patches: Any, key: str, device: torch.device) -> Tensor:
    """The weight in full precision, with its patches."""
    weight = weight.to(device)
    convert = getattr(layer, "convert_weight", None)
    plain = weight if convert is None else convert(weight)
    if not patches:
        return plain
    return comfy.lora.calculate_weight(
        patches, plain.to(torch.float32, copy=True), key, intermediate_dtype=torch.float32
    )
