"""Layers that the host's memory management does not see: those that only step tables need, 30 % of the weights.

Both of the host's managers walk the tree of modules and give what they find memory on the card. A Shelved module has no
children and no parameters to find, while state dicts, and so loading, saving, LoRA names and key lookups, go on as if
it were not there. Its weights stay where they were loaded. When they are needed, on_device makes a copy of the layer on
the card, patched as the host patches streamed layers, that is gone after use.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

from ..model.transformer import FramePackTransformer, Hold


class Shelved(nn.Module):
    """A module that only state dicts and callers see."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["module"] = module.requires_grad_(False)  # past nn.Module, which would list it as a child
        for layer in module.modules():
            if hasattr(layer, "comfy_cast_weights"):
                layer.comfy_cast_weights = True  # the weights follow the input to its device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the module has: the host looks weights up by their dotted names."""
        if "module" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.__dict__["module"], name)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, layer in self.module.named_modules():
            inner = f"{prefix}{name}." if name else prefix
            own = {key: value for key, value in state_dict.items() if key.startswith(inner)}
            layer._load_from_state_dict(own, inner, *args)


def shelve_step_layers(transformer: FramePackTransformer) -> None:
    """Shelve the layers behind StepInputs, in place."""
    for block in transformer.transformer_blocks:
        block.norm1, block.norm1_context = Shelved(block.norm1), Shelved(block.norm1_context)  # pyright: ignore
    for block in transformer.single_transformer_blocks:
        block.norm = Shelved(block.norm)  # pyright: ignore
    for name in ("norm_out", "time_text_embed", "context_embedder", "image_projection"):
        setattr(transformer, name, Shelved(getattr(transformer, name)))


def shelved_bytes(model: nn.Module) -> int:
    """Size of all shelved weights of a model."""
    return sum(comfy.model_management.module_size(shelved.module) for shelved in _shelved(model).values())


def holder(patcher: Any, device: torch.device) -> Hold:
    """hold(module) of transformer.step_inputs, for the shelved layers of a ModelPatcher's model."""
    names = {id(shelved): name for name, shelved in _shelved(patcher.model).items()}

    @contextlib.contextmanager
    def hold(shelved: nn.Module) -> Iterator[Any]:
        yield on_device(shelved.module, names[id(shelved)], patcher, device)  # pyright: ignore

    return hold


def patch_for_saving(model: nn.Module) -> None:
    """Patch the shelved weights in place, as hosts that save what they loaded do with all others.

    The patcher keeps the plain ones and puts them back with the others.
    """
    keys = {f"{name}.{key}" for name, shelved in _shelved(model).items() for key in shelved.module.state_dict()}
    for patcher in comfy.model_management.loaded_models():
        if patcher.model is model:
            for key in keys & patcher.patches.keys():
                patcher.patch_weight_to_device(key)


def _shelved(model: nn.Module) -> dict[str, Shelved]:
    """By their names in state dicts; torch.compile puts a module of its own in between."""
    modules = model.named_modules()
    return {name.replace("._orig_mod", ""): part for name, part in modules if isinstance(part, Shelved)}


def on_device(module: nn.Module, name: str, patcher: Any, device: torch.device) -> nn.Module:
    """A copy of a module on the device, with the patcher's LoRAs; the module itself is not touched."""
    there = copy.copy(module)

    def moved(tensor: Any) -> Any:
        return None if tensor is None else comfy.model_management.cast_to(tensor, None, device)

    parameters = {key: moved(parameter) for key, parameter in module._parameters.items()}
    there.__dict__["_parameters"] = {
        key: None if tensor is None else nn.Parameter(tensor, requires_grad=False) for key, tensor in parameters.items()
    }
    there.__dict__["_buffers"] = {key: moved(buffer) for key, buffer in module._buffers.items()}
    there.__dict__["_modules"] = {
        key: None if child is None else on_device(child, f"{name}.{key}", patcher, device)
        for key, child in module._modules.items()
    }
    for part in ("weight", "bias"):
        functions = _weight_functions(f"{name}.{part}", patcher)
        if functions:
            setattr(there, f"{part}_function", functions)
    return there


def _weight_functions(key: str, patcher: Any) -> list[Any]:
    """What the host's loader attaches to a layer that it streams."""
    functions = []
    if key in patcher.patches and key not in patcher.backup:  # else patched in place
        _, set_weight, convert_weight = comfy.model_patcher.get_key_weight(patcher.model, key)
        functions.append(comfy.model_patcher.LowVramPatch(key, patcher.patches, convert_weight, set_weight))
    return functions + list(patcher.weight_wrapper_patches.get(key, ()))
