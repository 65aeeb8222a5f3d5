"""Quantise a transformer's weights tensor by tensor, in the formats that the host's loader reads back.

What leaves here is a state dict like that of a quantised file, so loading a bf16 file quantised, saving it and loading
the saved file are one path. A source tensor is let go before the next one is read: never two copies of the weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.quant_ops
import torch
from safetensors import safe_open
from torch import Tensor

from ..model.fp8 import FP8, Rows, quantise_rows
from ..model.quantisation import ROWWISE, StoredFormat, is_block_layer

INT8 = "int8_convrot"
LARGEST_ROTATION = 256  # ConvRot turns groups of inputs by Hadamard matrices; the host's default group

Weight = tuple[Tensor, Tensor | None]  # and its scale, as stored


class Recipe(NamedTuple):
    """A format to quantise to: the tensors of one layer, by suffix, and the stored formats that it may start from."""

    quantise: Callable[[Tensor], dict[str, Tensor]]
    accepts: tuple[str, ...]
    missing: Callable[[], str | None]


def quantise_layer_rowwise(weight: Tensor) -> dict[str, Tensor]:
    """[N, K] -> "weight" float8_e4m3fn and "weight_scale" [N, 1]."""
    rows = quantise_rows(weight)
    return {"weight": rows.values, "weight_scale": rows.scales}


def quantise_layer_int8(weight: Tensor) -> dict[str, Tensor]:
    """[N, K] -> the host's int8_tensorwise with one scale per output channel and rotated inputs, all by the host."""
    group = LARGEST_ROTATION
    while weight.shape[1] % group:
        group //= 4  # Hadamard sizes are powers of 4
    layout = {"is_weight": True, "per_channel": True, "convrot": group > 1, "convrot_groupsize": max(group, 4)}
    # in float32: the host rotates in the dtype that it is given
    quantised = comfy.quant_ops.QuantizedTensor.from_float(weight.float(), "TensorWiseINT8Layout", **layout)
    form = {"format": "int8_tensorwise"}
    if group > 1:
        form |= {"convrot": True, "convrot_groupsize": group}
    words = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
    return {**quantised.state_dict("weight"), "comfy_quant": words}


def _int8_missing() -> str | None:
    if "int8_tensorwise" in comfy.quant_ops.QUANT_ALGOS:
        return None
    return f"This ComfyUI has no int8 layers, which {INT8} needs; update it, or choose {ROWWISE}."


RECIPES: dict[str, Recipe] = {
    ROWWISE: Recipe(quantise_layer_rowwise, (ROWWISE, "fp8_e4m3fn", "float8_e4m3fn"), lambda: None),
    INT8: Recipe(quantise_layer_int8, (), _int8_missing),
}


def check_recipe(recipe: str, stored: StoredFormat, name: str) -> None:
    """Raises ValueError for a second quantiser, and for a format that this host cannot compute."""
    missing = RECIPES[recipe].missing()
    if missing is not None:
        raise ValueError(missing)
    if stored.quantised and stored.name not in RECIPES[recipe].accepts:
        raise ValueError(
            f"{name} is quantised already ({stored.name}) and would be quantised again by {recipe}; "
            "two quantisers add up their errors. Use weight_dtype default, or a bf16 file."
        )


def read_weights(files: list[Path], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names without the prefix, and tensors, one at a time; what is not copied is gone with the next one.

    The file is opened anew for each, because pages that were read stay resident for as long as it is open.
    """
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = [key for key in opened.keys() if key.startswith(prefix)]  # noqa: SIM118  # not a mapping
        for key in keys:
            with safe_open(file, framework="pt") as opened:
                yield key[len(prefix) :], opened.get_tensor(key)


def quantised_state_dict(
    weights: Iterator[tuple[str, Tensor]], scales: Mapping[str, Tensor], recipe: str
) -> dict[str, Tensor]:
    """A state dict in the recipe's format, on the CPU; computed on the card when there is one.

    scales: of layers that are fp8 already, by layer name; their weights are kept as they are.
    """
    device = comfy.model_management.get_torch_device()
    out: dict[str, Tensor] = {}
    for name, tensor in weights:
        layer, _, kind = name.rpartition(".")
        if kind in _SCALES or name == "scaled_fp8":
            continue
        if kind != "weight":
            out[name] = tensor.clone()
        elif tensor.dtype == FP8:
            out.update(_kept_rows(layer, tensor, scales.get(layer)))
        elif is_block_layer(layer):
            quantised = RECIPES[recipe].quantise(tensor.to(device))
            out.update({f"{layer}.{suffix}": part.to("cpu") for suffix, part in quantised.items()})
        else:
            out[name] = tensor.clone()
    return out


def _kept_rows(layer: str, weight: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
    """A layer that is fp8 already: the same 8 bits, with its one scale (1 when it has none) for every row."""
    scale = torch.ones(()) if scale is None else scale.float()
    if weight.ndim != 2:
        return {f"{layer}.weight": (weight.float() * scale).to(torch.bfloat16)}
    scales = scale.reshape(-1, 1).expand(weight.shape[0], 1).contiguous()
    return dict(zip((f"{layer}.weight", f"{layer}.weight_scale"), Rows(weight.clone(), scales), strict=True))


def read_scales(files: list[Path], prefix: str) -> dict[str, Tensor]:
    """Scales of a file's fp8 layers, by layer name."""
    scales: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                layer, _, kind = key[len(prefix) :].rpartition(".")
                if kind in ("scale_weight", "weight_scale"):
                    scales[layer] = opened.get_tensor(key)
    return scales


_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")
