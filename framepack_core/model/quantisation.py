"""Which layers are quantised, and in which precision a checkpoint's file already is."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

# the matrix products of the blocks; embedders, modulations, norms, refiner and output stay as they are, because
# they are small or outside the step loop, and every token depends on them
_BLOCK_LAYER = re.compile(
    r"(single_)?transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
QUANTISATION_METADATA = "_quantization_metadata"  # ComfyUI QUANTIZATION.md
ROWWISE = "fp8_e4m3fn_rowwise"


class StoredFormat(NamedTuple):
    """Precision of a checkpoint's block weights: `name` for messages, and whether it is a quantised one."""

    name: str
    quantised: bool


def is_block_layer(name: str) -> bool:
    """Whether the layer of this name (without ".weight") is one of those that are quantised."""
    return _BLOCK_LAYER.fullmatch(name) is not None


def is_rowwise(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> bool:
    """Whether a state dict has our row-wise scales: [N, 1] beside the weight, and no format of the host's own."""
    return any(
        key.endswith(".weight_scale")
        and len(shape) == 2
        and shape[1] == 1
        and key.startswith(prefix)
        and key.removesuffix("weight_scale") + "comfy_quant" not in shapes
        for key, shape in shapes.items()
    )


def stored_format(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], metadata: Mapping[str, str], prefix: str
) -> StoredFormat:
    """From the header alone: dtypes are safetensors' names, as "BF16" and "F8_E4M3"."""
    block = {dtypes[key] for key in shapes if key.endswith(".weight") and is_block_layer(key[len(prefix) : -7])}
    if QUANTISATION_METADATA in metadata:
        layers = json.loads(metadata[QUANTISATION_METADATA])["layers"].values()
        return StoredFormat(" and ".join(sorted({layer["format"] for layer in layers})), True)
    if any(key.endswith(".comfy_quant") for key in shapes):
        return StoredFormat(
            "int8_tensorwise" if "I8" in block else "float8_e4m3fn" if "F8_E4M3" in block else "4 bit", True
        )
    if is_rowwise(shapes, prefix):
        return StoredFormat(ROWWISE, True)
    if prefix + "scaled_fp8" in shapes:
        return StoredFormat("float8_e5m2 scaled" if "F8_E5M2" in block else "float8_e4m3fn", True)
    for dtype, name in (("F8_E4M3", "fp8_e4m3fn"), ("F8_E5M2", "fp8_e5m2")):
        if dtype in block:
            return StoredFormat(name, True)
    return StoredFormat(" and ".join(sorted(block)), False)
