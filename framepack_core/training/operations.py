"""Layers for training: weights stay in the dtype they have (float32), computation follows the dtype of the input.

Unlike autocast this is the dtype policy of inference, to the last projection, which computes in float32.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..model.operations import Linear

__all__ = ["Conv3d", "LayerNorm", "Linear", "RMSNorm"]


class Conv3d(nn.Conv3d):
    """A convolution whose stride is its kernel, as one matrix product over patches.

    The same sum as torch's; its backward pass does not depend on what a library offers for 3-D kernels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, T, H, W], each axis a multiple of the kernel -> [B, D, T', H', W']."""
        (kt, kh, kw), dtype = self.kernel_size, input.dtype
        patches = input.unflatten(4, (-1, kw)).unflatten(3, (-1, kh)).unflatten(2, (-1, kt))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, T', H', W', C * kt * kh * kw]
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(patches, self.weight.flatten(1).to(dtype), bias).movedim(-1, 1)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)
