"""8-bit float operands: matrices with one scale per row and their products, and heads of attention with one each.

A row is divided by its largest magnitude over 448, the largest float8_e4m3fn, and the product is multiplied by both
scales. Recipe: torch's row-wise `_scaled_mm` (aten/src/ATen/native/cuda/ScaledBlas.cpp), FBGEMM's fp8 row-wise.
Heads are as FlashAttention-3 (arXiv 2407.08608) takes them.
"""

import functools
import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.device import kernels_run_on

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
TINY = 1e-12  # the largest magnitude of a row of zeros
FIRST_CAPABILITY = (8, 9)  # of the cards that convert to the format
ROWS = 1024  # that plain torch quantises at once
ALIGNMENT = 16  # the tensor cores take 16 values at a time, along both axes of the weight

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """A matrix in 8 bit: row i is values[i] * scales[i]."""

    values: Tensor  # [N, K] float8_e4m3fn
    scales: Tensor  # [N, 1] float32


class Heads(NamedTuple):
    """Queries, keys or values in 8 bit: head h of sample b is values[b, h] * scales[b, h]."""

    values: Tensor  # [B, H, L, d] float8_e4m3fn
    scales: Tensor  # [B, H] float32


def quantise_rows(x: Tensor) -> Rows:
    """[N, K] of any float dtype -> Rows; by the Triton kernel on CUDA, by its twin elsewhere."""
    if x.ndim != 2 or not _fuses(x):
        return quantise_rows_eager(x)
    from ..kernels import fp8_rows

    return Rows(*fp8_rows.quantise(x)) if x.shape[1] <= fp8_rows.LONGEST_ROW else quantise_rows_eager(x)


def quantise_rows_eager(x: Tensor) -> Rows:
    """The reference of the kernel, in float32; ROWS at a time, since its steps take many times the memory of Rows."""
    parts = [_quantise_few(few) for few in x.split(ROWS)]
    values, scales = zip(*parts, strict=True)
    return Rows(torch.cat(values), torch.cat(scales))


def _quantise_few(x: Tensor) -> Rows:
    largest = largest_of(x, -1, keepdim=True)
    return Rows((x * (FP8_MAX / largest)).to(FP8), largest / FP8_MAX)  # the product is float32, whatever x is


def dequantise_rows(rows: Rows, dtype: torch.dtype) -> Tensor:
    """[N, K] with one rounding, to dtype."""
    return (rows.values.float() * rows.scales).to(dtype)


def quantise_heads(x: Tensor) -> Heads:
    """[B, H, L, d] of any float dtype -> Heads; by the Triton kernel on CUDA, by its twin elsewhere."""
    if not _fuses(x):
        return quantise_heads_eager(x)
    from ..kernels import fp8_heads

    return Heads(*fp8_heads.quantise(x))


def quantise_heads_eager(x: Tensor) -> Heads:
    """The reference of the kernel, in float32."""
    largest = largest_of(x, (2, 3))  # [B, H]
    return Heads((x * (FP8_MAX / largest)[..., None, None]).to(FP8), largest / FP8_MAX)


def largest_of(x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The largest magnitude along dim, float32 and at least TINY, in one pass."""
    return torch.linalg.vector_norm(x, math.inf, dim, keepdim).float().clamp_min(TINY)


def fp8_linear(x: Tensor | Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype, product: str) -> Tensor:
    """x @ weight.T + bias in dtype; x [M, K], or its Rows when several layers share it; weight [N, K] -> [M, N].

    product is one of `fp8_product`: "rowwise" is one kernel; "tensorwise" multiplies without scales and scales the
    result, one rounding to bf16 more, for cards and torch versions whose row-wise kernel is missing; "dequantised"
    is an ordinary product of the dequantised operands.
    """
    if product == "dequantised":
        plain = dequantise_rows(x, dtype) if isinstance(x, Rows) else x.to(dtype)
        return F.linear(plain, dequantise_rows(weight, dtype), bias)
    rows = x if isinstance(x, Rows) else quantise_rows(x)
    if product == "rowwise":
        out = _scaled_mm(rows.values, weight.values, rows.scales, weight.scales.t(), bias)
        return out.to(dtype)
    one = torch.ones((), device=rows.values.device)
    out = _scaled_mm(rows.values, weight.values, one, one, None).mul_(rows.scales).mul_(weight.scales.t())
    return (out if bias is None else out.add_(bias)).to(dtype)


def fits_fp8(weight: Tensor) -> bool:
    """Whether the tensor cores take a weight of this shape."""
    return weight.ndim == 2 and all(size % ALIGNMENT == 0 for size in weight.shape)


@functools.cache
def fp8_product(device: torch.device) -> str:
    """The best 8-bit product that this device computes, found by trying; said once in the log."""
    if device.type != "cuda":
        return "dequantised"
    eye = torch.eye(8 * ALIGNMENT, device=device).to(FP8)
    scales = torch.ones(8 * ALIGNMENT, 1, device=device)
    for product in ("rowwise", "tensorwise"):
        try:
            fp8_linear(Rows(eye, scales), Rows(eye, scales), None, torch.bfloat16, product)
        except (RuntimeError, ValueError) as error:
            logger.debug("No %s fp8 product on %s: %s", product, device, error)
            continue
        logger.info("fp8 weights are multiplied in 8 bit (%s) on %s.", product, torch.cuda.get_device_name(device))
        return product
    logger.info(
        "%s has no 8-bit float product: fp8 weights save memory only and are computed in the model's dtype.",
        torch.cuda.get_device_name(device),
    )
    return "dequantised"


def _fuses(x: Tensor) -> bool:
    if not x.is_cuda or torch.version.hip is not None or x.stride(-1) != 1:
        return False
    return torch.cuda.get_device_capability(x.device) >= FIRST_CAPABILITY and kernels_run_on(x.device, x.dtype)


def _scaled_mm(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.to(torch.bfloat16)  # the row-wise kernel knows bf16 only
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        x, weight.t(), x_scale, weight_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=x.is_cuda
    )
