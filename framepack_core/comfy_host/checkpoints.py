"""Load a transformer, after its headers have shown that it is a whole FramePack checkpoint."""

import inspect
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ..model.checkpoint import check_header, direction_of, find_files, read_header
from .conditioning import CHECKPOINT_ATTACHMENT
from .detection import install_detection_hook
from .shelf import shelved_bytes

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The words of core's "Load Diffusion Model" and the model options they stand for."""


def load_transformer(path: Path, weight_dtype: str = "default") -> Any:
    """A MODEL from a file, one of its shards, a shard index or folder, or an HF snapshot folder.

    Raises FileNotFoundError for missing shards, ValueError for a file that is cut off or not FramePack,
    both before any weight is read.
    """
    files = find_files(path)
    header = read_header(files)
    check_header(header, path.name)
    install_detection_hook()
    options = dict(WEIGHT_DTYPES[weight_dtype])
    if len(files) == 1:
        model = comfy.sd.load_diffusion_model(str(files[0]), model_options=options)
    else:
        model = load_shards([str(file) for file in files], options)
    # what the host will have to place; the shelf is no part of it
    model.size = comfy.model_management.module_size(model.model) - shelved_bytes(model.model)
    # shards have names that say nothing, in folders that do: models--lllyasviel--FramePackI2V_HY/snapshots/0123/...
    direction = direction_of(header, "/".join(path.parts[-4:]))
    model.set_attachments(CHECKPOINT_ATTACHMENT, ("/".join(path.parts[-2:]), direction))
    return model


def load_shards(files: list[str], model_options: dict[str, Any], disable_dynamic: bool = False) -> Any:
    """A MODEL from several files; the host calls this again, by cached_patcher_init, for a second copy."""
    state_dict: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors, entries = comfy.utils.load_torch_file(file, return_metadata=True)
        state_dict.update(tensors)
        metadata.update(entries or {})
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"metadata": metadata, "disable_dynamic": disable_dynamic}
    known = inspect.signature(load).parameters  # ComfyUI up to 0.3.64 knows neither, up to 0.3.75 only the first
    extra = {name: value for name, value in extra.items() if name in known}
    model = load(state_dict, model_options=model_options, **extra)
    model.cached_patcher_init = (load_shards, (files, model_options))
    return model
