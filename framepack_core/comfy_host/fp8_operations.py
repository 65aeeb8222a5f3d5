"""Layers for row-wise fp8 checkpoints: ComfyUI's, with a Linear that multiplies in 8 bit where the card can.

Weights stay the host's affair: it streams them, applies LoRAs to them, and gets them back quantised again. A layer
whose weight arrives in full precision, because a LoRA is added to it during the step, is computed in full precision.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.fp8 import FP8, Rows, dequantise_rows, fits_fp8, fp8_linear, fp8_product
from ..model.quantisation import is_block_layer
from .fp8_layout import TYPED, is_rows, quantise_weight, unwrap, wrap

# ComfyUI 0.33 streams LoRAs too, adds them on the card, and quantises the sum again when asked to
_REQUANTISES = "want_requant" in inspect.signature(comfy.ops.cast_bias_weight).parameters


class RowwiseLinear(nn.Module, comfy.ops.CastWeightBiasOp):
    """Linear whose weight is row-wise fp8, or plain where the file has it plain."""

    comfy_cast_weights = True
    multiplies_in_8_bit = False

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None):
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.register_parameter("weight", None)  # the file's own tensor becomes the weight: there is no second copy
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )

    def forward(self, x: Tensor | Rows) -> Tensor:
        """[..., K] -> [..., N] in the dtype of x; of Rows, which layers may share, [M, N] in the model's dtype."""
        comfy.ops.run_every_op()
        dtype = self.dtype if isinstance(x, Rows) else x.dtype
        values = x.values if isinstance(x, Rows) else x
        weight, bias, stream = self._brought_to(values.device, dtype)
        out = self._multiply(x, weight, bias, dtype)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out if isinstance(x, Rows) else out.unflatten(0, x.shape[:-1])

    def _brought_to(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Any]:
        """Weight, bias of dtype, and the stream that brings them, as the host's cast_bias_weight."""
        stays_rows = is_rows(self.weight) and len(self.weight_function) == 0
        given = {"device": device, "bias_dtype": dtype, "offloadable": True}
        if _REQUANTISES:
            given.update(compute_dtype=dtype, want_requant=stays_rows)
        if TYPED or not stays_rows:
            return comfy.ops.cast_bias_weight(self, dtype=self.weight.dtype if stays_rows else dtype, **given)
        # hosts whose layouts are dicts would stand still for the scales of every QuantizedTensor that they stream
        values, scales = unwrap(self.weight)
        plain = SimpleNamespace(weight=values, bias=self.bias, weight_function=(), bias_function=self.bias_function)
        values, bias, stream = comfy.ops.cast_bias_weight(plain, dtype=FP8, **given)
        return wrap(Rows(values, scales.to(device, non_blocking=True)), self.dtype), bias, stream

    def _multiply(self, x: Tensor | Rows, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        flat = x if isinstance(x, Rows) else x.flatten(0, -2)
        if not is_rows(weight):
            plain = dequantise_rows(flat, dtype) if isinstance(flat, Rows) else flat
            return F.linear(plain, weight.to(dtype), bias)
        rows = unwrap(weight)
        product = "dequantised"
        if self.multiplies_in_8_bit and fits_fp8(rows.values):
            product = fp8_product(rows.values.device)
        return fp8_linear(flat, rows, bias, dtype, product)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, *rest: Any
    ):
        weight = state_dict.pop(prefix + "weight", None)
        scales = state_dict.pop(prefix + "weight_scale", None)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        if weight is None:
            missing.append(prefix + "weight")
            return
        if weight.dtype == FP8 and scales is not None:
            weight = wrap(Rows(weight, scales.float()), self.dtype)
            self.multiplies_in_8_bit = is_block_layer(prefix.removesuffix("."))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
        """The tensors that the file has, so that the host counts their bytes and its savers write them."""
        if not is_rows(self.weight):
            return super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
        out = {} if destination is None else destination
        out[prefix + "weight"], out[prefix + "weight_scale"] = unwrap(self.weight)
        if self.bias is not None:
            out[prefix + "bias"] = self.bias
        return out

    def convert_weight(self, weight: Tensor, inplace: bool = False, **_: Any) -> Tensor:
        """What the host adds a LoRA to."""
        return weight.dequantize() if is_rows(weight) else weight

    def set_weight(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_: Any,
    ) -> Tensor | None:
        """Takes the weight with a LoRA in it, quantised again with scales of its own."""
        assert not inplace_update, "hosts with quantised tensors replace weights"
        if is_rows(self.weight):
            weight = wrap(quantise_weight(weight, seed), self.dtype)
        else:
            weight = weight.to(self.weight.dtype)
        if return_weight:
            return weight
        self.weight = nn.Parameter(weight, requires_grad=False)
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> "RowwiseLinear":
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(fn(parameter), requires_grad=False)
        return self


class RowwiseOperations(comfy.ops.manual_cast):
    """ComfyUI's layers, which compute in the dtype of their input, with our Linear."""

    Linear = RowwiseLinear
