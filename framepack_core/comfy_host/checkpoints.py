"""Load a transformer, after its headers have shown that it is a whole FramePack checkpoint."""

import inspect
import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ..model.checkpoint import check_header, direction_of, find_files, framepack_prefix, read_header
from ..model.config import METADATA_KEY
from ..model.quantisation import StoredFormat, stored_format
from .conditioning import CHECKPOINT_ATTACHMENT
from .detection import install_detection_hook
from .quantised_weights import RECIPES, check_recipe, quantised_state_dict, read_scales, read_weights
from .shelf import shelved_bytes

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
    **{recipe: {} for recipe in RECIPES},
}
"""The words of core's "Load Diffusion Model" and the model options they stand for, and our own formats."""

logger = logging.getLogger(__name__)


def load_transformer(path: Path, weight_dtype: str = "default") -> Any:
    """A MODEL from a file, one of its shards, a shard index or folder, or an HF snapshot folder.

    Raises FileNotFoundError for missing shards, ValueError for a file that is cut off, not FramePack, or
    quantised already when weight_dtype would quantise it again; all before any weight is read.
    """
    files = find_files(path)
    header = read_header(files)
    check_header(header, path.name)
    prefix = framepack_prefix(header.shapes) or ""
    stored = stored_format(header.shapes, header.dtypes, header.metadata, prefix)
    check_weight_dtype(weight_dtype, stored, path.name)
    install_detection_hook()
    say_what_the_card_lacks()
    names = [str(file) for file in files]
    options = dict(WEIGHT_DTYPES[weight_dtype])
    if weight_dtype in RECIPES:
        model = load_quantised(names, prefix, weight_dtype)
    elif len(files) == 1:
        model = comfy.sd.load_diffusion_model(names[0], model_options=options)
    else:
        model = load_shards(names, options)
    # what the host will have to place; the shelf is no part of it
    model.size = comfy.model_management.module_size(model.model) - shelved_bytes(model.model)
    # shards have names that say nothing, in folders that do: models--lllyasviel--FramePackI2V_HY/snapshots/0123/...
    direction = direction_of(header, "/".join(path.parts[-4:]))
    model.set_attachments(CHECKPOINT_ATTACHMENT, ("/".join(path.parts[-2:]), direction))
    return model


def check_weight_dtype(weight_dtype: str, stored: StoredFormat, name: str) -> None:
    """Raises ValueError for two quantisers: a file that is 8 bit already, and a weight_dtype that is another."""
    if weight_dtype in RECIPES:
        check_recipe(weight_dtype, stored, name)
        return
    is_the_same = stored.name == weight_dtype.removesuffix("_fast")  # a plain fp8 file needs no scales
    if stored.quantised and weight_dtype != "default" and not is_the_same:
        raise ValueError(
            f"{name} is quantised already ({stored.name}) and would be quantised again by {weight_dtype}; "
            "two quantisers add up their errors. Use weight_dtype default, or a bf16 file."
        )


def say_what_the_card_lacks() -> None:
    """One line in the log for a card without bf16, on which the host computes in another dtype."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu" and not comfy.model_management.should_use_bf16(device):
        logger.warning("%s has no fast bf16: FramePack is computed in float32 there, which is slow.", device)


def load_quantised(files: list[str], prefix: str, recipe: str, disable_dynamic: bool = False) -> Any:
    """A MODEL whose block weights are quantised while they are read; the host may call this again, as load_shards."""
    paths = [Path(file) for file in files]
    weights = quantised_state_dict(read_weights(paths, prefix), read_scales(paths, prefix), recipe)
    metadata = {key: text for key, text in read_header(paths).metadata.items() if key == METADATA_KEY}
    model = load_state_dict(weights, metadata, {}, disable_dynamic)
    model.cached_patcher_init = (load_quantised, (files, prefix, recipe))
    return model


def load_shards(files: list[str], model_options: dict[str, Any], disable_dynamic: bool = False) -> Any:
    """A MODEL from several files; the host calls this again, by cached_patcher_init, for a second copy."""
    state_dict: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors, entries = comfy.utils.load_torch_file(file, return_metadata=True)
        state_dict.update(tensors)
        metadata.update(entries or {})
    model = load_state_dict(state_dict, metadata, model_options, disable_dynamic)
    model.cached_patcher_init = (load_shards, (files, model_options))
    return model


def load_state_dict(
    state_dict: dict[str, torch.Tensor], metadata: dict[str, str], model_options: dict[str, Any], disable_dynamic: bool
) -> Any:
    """The host's loader, with what this version of it takes."""
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"metadata": metadata, "disable_dynamic": disable_dynamic}
    known = inspect.signature(load).parameters  # ComfyUI up to 0.3.64 knows neither, up to 0.3.75 only the first
    extra = {name: value for name, value in extra.items() if name in known}
    return load(state_dict, model_options=model_options, **extra)
