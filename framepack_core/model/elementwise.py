"""What a block does between its matrix products: norms, rotation, activation, gates.

Each function has its maths in plain torch under its eager_ name: the reference of the tests, and the path on CPU,
on MPS, in training and under torch.compile. On a card with Triton the same chain is one kernel that computes in
float32 and rounds once. Letters: B batch, L tokens, D width, H heads, d head dimension.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.device import kernels_run_on
from .rope import Rotation, rotate

NORM_EPS = 1e-6
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TOKENS = 2048
"""At once in plain torch, where steps in between would take several times the memory of what comes of them."""

_unfused: ContextVar[bool] = ContextVar("_unfused", default=False)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Inside the with block this thread computes in plain torch, to compare or to look for a fault."""
    token = _unfused.set(True)
    try:
        yield
    finally:
        _unfused.reset(token)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x [B, L, D] without weights, times 1 + scale [B, 1, D], plus shift [B, 1, D]."""
    if not (_fuses(x, shift, scale) and _are_rows(x, (x,), (shift, scale))):
        return eager_modulated_norm(x, shift, scale)
    from ..kernels import rows

    return rows.modulated_norm(x, shift, scale, NORM_EPS)


def gated_sum(residual: Tensor, branch: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """residual [B, L, D] plus branch [B, L, D] times gate [B, 1, D]; into out, some tokens of a contiguous buffer."""
    into = () if out is None else (out,)
    if not (_fuses(residual, branch, gate, *into) and _are_rows(residual, (branch, *into), (gate,))):
        return eager_gated_sum(residual, branch, gate, out)
    from ..kernels import rows

    return rows.gated_sum(residual, branch, gate, out)


def gated_norm(residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """gated_sum and the modulated_norm of it, with one read of the residual."""
    vectors = (gate, shift, scale)
    if not (_fuses(residual, branch, *vectors) and _are_rows(residual, (branch,), vectors)):
        return eager_gated_norm(residual, branch, gate, shift, scale)
    from ..kernels import rows

    return rows.gated_norm(residual, branch, gate, shift, scale, NORM_EPS)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, of x [B, L, D]."""
    if not (_fuses(x) and x.dim() == 3):
        return eager_gelu(x)
    from ..kernels.gelu import gelu as fused_gelu

    return fused_gelu(x)


def joined_gelu(left: Tensor, x: Tensor) -> Tensor:
    """left [B, L, C] and, after it, gelu of x [B, L, D]: one input [B, L, C + D] of the next projection."""
    if not (_fuses(x, left) and x.dim() == 3):
        return eager_joined_gelu(left, x)
    from ..kernels.gelu import joined_gelu as fused_joined_gelu

    return fused_joined_gelu(left, x)


def normed_rotation(
    x: Tensor, weight: Tensor, rotation: Rotation | None, eps: float, out: Tensor | None = None
) -> Tensor:
    """RMSNorm of x [B, L, H, d] over d, then a turn of neighbouring pairs of the tokens that rotation has.

    Tokens beyond those, all of them when rotation is None, are only normed. x may be a slice of a joint buffer;
    out may be x or another such slice.
    """
    into = () if out is None else (out,)
    if not (_fuses(x, weight, *into) and _are_heads(x, into, rotation)):
        return eager_normed_rotation(x, weight, rotation, eps, out)
    from ..kernels import heads

    cos, sin = (None, None) if rotation is None else (rotation.cos[0, 0], rotation.sin[0, 0])  # [L', d/2]
    return heads.normed_rotation(x, weight, cos, sin, eps, out)


def eager_modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """modulated_norm in plain torch, rounded after every operation as the original does."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def eager_gated_sum(residual: Tensor, branch: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """gated_sum in plain torch."""
    return _into(out, residual + branch * gate)


def eager_gated_norm(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """gated_norm in plain torch."""
    total = eager_gated_sum(residual, branch, gate)
    return total, eager_modulated_norm(total, shift, scale)


def eager_gelu(x: Tensor) -> Tensor:
    """gelu in plain torch."""
    return F.gelu(x, approximate="tanh")


def eager_joined_gelu(left: Tensor, x: Tensor) -> Tensor:
    """joined_gelu in plain torch; TOKENS at a time."""
    if _is_traced(left, x):
        return torch.cat([left, eager_gelu(x)], dim=-1)
    beside = left.shape[2]
    joined = x.new_empty(*x.shape[:2], beside + x.shape[2])
    joined[..., :beside] = left
    for here in _some_tokens(x):
        joined[:, here, beside:] = eager_gelu(x[:, here])
    return joined


def eager_normed_rotation(
    x: Tensor, weight: Tensor, rotation: Rotation | None, eps: float, out: Tensor | None = None
) -> Tensor:
    """normed_rotation in plain torch, rounded between norm and rotation; TOKENS at a time."""
    parts = []
    for here in [slice(None)] if _is_traced(x, weight) else _some_tokens(x):
        normed = F.rms_norm(x[:, here], weight.shape, weight, eps)
        if rotation is not None:
            few = Rotation(rotation.cos[:, :, here], rotation.sin[:, :, here])  # none for tokens beyond those it has
            normed = rotate(normed.transpose(1, 2), few).transpose(1, 2)
        parts.append(_into(None if out is None else out[:, here], normed))
    return torch.cat(parts, dim=1) if out is None else out


def _some_tokens(x: Tensor) -> list[slice]:
    """Of x [B, L, ...], TOKENS each."""
    return [slice(first, first + TOKENS) for first in range(0, x.shape[1], TOKENS)]


def _is_traced(*tensors: Tensor) -> bool:
    """Whether autograd or torch.compile looks on: no writing into buffers then, and no loops over lengths."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _fuses(*tensors: Tensor) -> bool:
    """Whether these tensors may go to a kernel at all."""
    first = tensors[0]
    if _is_traced(*tensors) or not first.is_cuda or first.dtype not in KERNEL_DTYPES or _unfused.get():
        return False
    alike = all(
        type(tensor) in (Tensor, nn.Parameter)  # no fake, quantised or other tensors of a class of their own
        and tensor.dtype == first.dtype
        and tensor.device == first.device
        and tensor.stride(-1) == 1
        for tensor in tensors
    )
    return alike and kernels_run_on(first.device, first.dtype)


def _are_rows(x: Tensor, tokens: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> bool:
    """x and tokens [B, L, D] of a width that fits a program, vectors [B or 1, 1, D]."""
    from ..kernels.rows import MAX_WIDTH

    return (
        x.dim() == 3
        and x.shape[-1] <= MAX_WIDTH
        and all(tensor.shape == x.shape for tensor in tokens)
        and all(v.dim() == 3 and v.shape[0] in (1, x.shape[0]) and v.shape[1:] == (1, x.shape[-1]) for v in vectors)
    )


def _are_heads(x: Tensor, into: tuple[Tensor, ...], rotation: Rotation | None) -> bool:
    """x and into [B, L, H, d] of a size that fits a program, rotation one table for all samples and heads."""
    from ..kernels.heads import MAX_TILE, tile_size

    if x.dim() != 4 or tile_size(x.shape[2], x.shape[3]) > MAX_TILE or any(t.shape != x.shape for t in into):
        return False
    return rotation is None or all(
        table.dtype == torch.float32
        and table.device == x.device
        and table.shape[:2] == (1, 1)
        and table.stride(-1) == 1
        and table.shape[2] <= x.shape[1]
        and table.shape[3] * 2 == x.shape[3]
        for table in rotation
    )
