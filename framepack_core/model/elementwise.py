"""What a block does between its matrix products: norms, rotation, activation, gates.

Letters: B batch, L tokens, D width, H heads, d head dimension.
"""

from torch import Tensor
from torch.nn import functional as F

from .rope import Rotation, rotate

NORM_EPS = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x [B, L, D] without weights, times 1 + scale [B, 1, D], plus shift [B, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def gated_sum(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """residual [B, L, D] plus branch [B, L, D] times gate [B, 1, D]."""
    return residual + branch * gate


def gated_norm(residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """gated_sum, and the modulated_norm of it."""
    total = gated_sum(residual, branch, gate)
    return total, modulated_norm(total, shift, scale)


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """GELU in its tanh form; into out, which may be a slice of a wider buffer."""
    return _into(out, F.gelu(x, approximate="tanh"))


def normed_rotation(
    x: Tensor, weight: Tensor, rotation: Rotation | None, eps: float, out: Tensor | None = None
) -> Tensor:
    """RMSNorm of x [B, L, H, d] over d, then a turn of neighbouring pairs of the tokens that rotation has.

    Tokens beyond those, all of them when rotation is None, are only normed. out may be x or a slice of a joint buffer.
    """
    normed = F.rms_norm(x, weight.shape, weight, eps)
    if rotation is not None:
        normed = rotate(normed.transpose(1, 2), rotation).transpose(1, 2)
    return _into(out, normed)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)
