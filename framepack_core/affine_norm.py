"""Norms without statistics, for autoencoders too narrow for group norms.

A group norm's statistics are those of all frames that are coded together. With few channels they jump from piece to
piece, and hosts cut films into different pieces; without them coding does not depend on the pieces.
"""

import torch
from torch import Tensor, nn

AFFINE = "affine"  # metadata entry "norms" of a VAE that was trained with these


class AffineNorm(nn.Module):
    """Weight and bias of each channel of x [B, C, ...], named as a GroupNorm's."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.ndim - 2)
        return torch.addcmul(self.bias.to(x).view(shape), x, self.weight.to(x).view(shape))


def use_affine_norms(model: nn.Module) -> None:
    """Put an AffineNorm with the same parameters in the place of every GroupNorm."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, AffineNorm(child))
