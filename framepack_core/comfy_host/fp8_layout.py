"""Row-wise fp8 as a layout of the host's QuantizedTensor, so that the host streams, copies, patches and saves it.

ComfyUI's own fp8 layout has one scale for a whole tensor, and quantises activations with the scale 1 unless the file
brings one (comfy/quant_ops.py, comfy_kitchen/tensor/fp8.py). A layout is the host's documented way to add a format
(QUANTIZATION.md). Two interfaces: ComfyUI 0.3.75 keeps a layout's parameters in a dict, 0.33 in a dataclass.
"""

import dataclasses
from typing import Any

import comfy.float
import comfy.quant_ops
import torch
from torch import Tensor

from ..model.fp8 import FP8, FP8_MAX, Rows, dequantise_rows, largest_of, quantise_rows

LAYOUT = "FramePackRowwiseFP8Layout"
TYPED = hasattr(comfy.quant_ops, "register_layout_class")  # ComfyUI 0.33; 0.3.75 has dicts


def register_layout() -> None:
    """Make the layout known to the host; again changes nothing."""
    if TYPED:
        comfy.quant_ops.register_layout_class(LAYOUT, _TypedLayout)
    else:
        comfy.quant_ops.LAYOUTS[LAYOUT] = _DictLayout


def wrap(rows: Rows, dtype: torch.dtype) -> Tensor:
    """Rows as the host's QuantizedTensor that stands for a tensor of dtype; nothing is copied."""
    if TYPED:
        params = _TypedLayout.Params(scale=rows.scales, orig_dtype=dtype, orig_shape=tuple(rows.values.shape))
    else:
        params = {"scale": rows.scales, "orig_dtype": dtype}
    return comfy.quant_ops.QuantizedTensor(rows.values, LAYOUT, params)


def unwrap(weight: Any) -> Rows:
    """The Rows in a QuantizedTensor of this layout."""
    params = weight._params if TYPED else weight._layout_params
    return Rows(weight._qdata, params.scale if TYPED else params["scale"])


def is_rows(weight: Any) -> bool:
    """Whether a weight is one of `wrap`."""
    return (
        isinstance(weight, comfy.quant_ops.QuantizedTensor)
        and getattr(weight, "_layout_cls" if TYPED else "_layout_type") == LAYOUT
    )


def quantise_weight(weight: Tensor, seed: int | None) -> Rows:
    """A weight that a patch has changed, with new scales; a seed rounds at random, as the host does for LoRAs."""
    if not seed:
        return quantise_rows(weight)
    scales = largest_of(weight, -1, keepdim=True) / FP8_MAX
    return Rows(comfy.float.stochastic_rounding(weight / scales.to(weight.dtype), FP8, seed=seed), scales)


class _DictLayout:
    """For ComfyUI 0.3.75; the names of the methods and parameters are the host's."""

    @classmethod
    def quantize(cls, tensor: Tensor, stochastic_rounding: int | None = 0, **_: Any) -> tuple[Tensor, dict]:
        rows = quantise_weight(tensor, stochastic_rounding)
        return rows.values, {"scale": rows.scales, "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(qdata: Tensor, scale: Tensor, orig_dtype: torch.dtype, **_: Any) -> Tensor:
        return dequantise_rows(Rows(qdata, scale), orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, Tensor]:
        return tuple(unwrap(qtensor))


if TYPED:
    from comfy_kitchen.tensor import QuantizedLayout
    from comfy_kitchen.tensor.base import BaseLayoutParams

    class _TypedLayout(QuantizedLayout):
        """For ComfyUI 0.33; the names of the methods and parameters are the host's."""

        MIN_SM_VERSION = (8, 9)

        @dataclasses.dataclass(frozen=True)
        class Params(BaseLayoutParams):
            """The host's scale [N, 1], dtype and shape, and nothing more."""

        @classmethod
        def quantize(cls, tensor: Tensor, stochastic_rounding: int | None = 0, **_: Any) -> tuple[Tensor, Any]:
            rows = quantise_weight(tensor, stochastic_rounding)
            return rows.values, cls.Params(rows.scales, tensor.dtype, tuple(tensor.shape))

        @classmethod
        def dequantize(cls, qdata: Tensor, params: Any) -> Tensor:
            return dequantise_rows(Rows(qdata, params.scale), params.orig_dtype)

        @classmethod
        def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, Tensor]:
            return tuple(unwrap(qtensor))

        @classmethod
        def state_dict_tensors(cls, qdata: Tensor, params: Any) -> dict[str, Tensor]:
            return {"": qdata, "_scale": params.scale}
