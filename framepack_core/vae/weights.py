"""Builds the streaming decoder from the modules of a VAE object, by the released names of its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..affine_norm import AffineNorm
from ..constants import FRAMES_PER_LATENT
from .convolution import Taps
from .decoder import Decoder, FrameOutput, Level, Middle
from .layers import CausalConvolution, Norm, ResidualBlock, Upsampler

UNUSED = ("encoder.", "quant_conv.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class UnknownVaeError(ValueError):
    """The VAE object is not built as expected, or something has been put around its modules."""


def build_decoder(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The decoder of a VAE `model` with copies of its weights on `device`.

    Raises UnknownVaeError, which says why, for a model with other weights than HunyuanVideo's, other norms, or hooks.
    On the meta device nothing is copied: the structure is checked, and its memory can be estimated.
    """
    reader = _Reader(model, device, dtype)
    deepest = _deepest(reader.weights)
    levels = tuple(reader.level(number) for number in range(deepest, -1, -1))
    decoder = Decoder(
        reader.linear("post_quant_conv"),
        reader.convolution("decoder.conv_in"),
        Middle(
            reader.residual_block("decoder.mid.block_1"),
            reader.norm("decoder.mid.attn_1.norm"),
            reader.joined([f"decoder.mid.attn_1.{name}" for name in "qkv"]),
            reader.linear("decoder.mid.attn_1.proj_out"),
            reader.residual_block("decoder.mid.block_2"),
        ),
        levels,
        reader.frame_output(),
    )
    reader.check_all_used()
    return decoder


def _deepest(weights: Mapping[str, Tensor]) -> int:
    numbers = [int(key.split(".")[2]) for key in weights if key.startswith("decoder.up.")]
    if not numbers:
        raise UnknownVaeError("it has no decoder.up")
    return max(numbers)


class _Reader:
    """Parts of the decoder by the names of their weights."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.modules = dict(model.named_modules())
        self.weights = {key: value for key, value in model.named_parameters() if not key.startswith(UNUSED)}
        self.unread = set(self.weights)
        self.device, self.dtype = device, dtype
        for name, module in self.modules.items():
            if any(getattr(module, hooks) for hooks in HOOKS):
                raise UnknownVaeError(f"{name or 'the model'} has hooks")

    def level(self, number: int) -> Level:
        prefix, count = f"decoder.up.{number}", 0
        blocks = []
        while f"{prefix}.block.{count}.norm1.weight" in self.weights:
            blocks.append(self.residual_block(f"{prefix}.block.{count}"))
            count += 1
        upsampler = None
        if number > 0:
            name = f"{prefix}.upsample"
            doubles_time = 2**number <= FRAMES_PER_LATENT  # the last levels double time, the ones before only pictures
            weight, bias = self.kernel(f"{name}.conv.conv", 3)
            upsampler = Upsampler.of(name, weight, bias, doubles_time)
        return Level(tuple(blocks), upsampler)

    def residual_block(self, name: str) -> ResidualBlock:
        shortcut = f"{name}.nin_shortcut"
        return ResidualBlock(
            self.norm(f"{name}.norm1"),
            self.convolution(f"{name}.conv1"),
            self.norm(f"{name}.norm2"),
            self.convolution(f"{name}.conv2"),
            self.linear(f"{shortcut}.conv") if f"{shortcut}.conv.weight" in self.weights else None,
        )

    def norm(self, name: str) -> Norm:
        module = self.modules.get(name)
        if not isinstance(module, nn.GroupNorm | AffineNorm):
            raise UnknownVaeError(f"{name} is {type(module).__name__}, not a group norm")
        groups, eps = (module.num_groups, module.eps) if isinstance(module, nn.GroupNorm) else (None, 0.0)
        wide = torch.promote_types(self.dtype, torch.float32)
        weight, bias = (self.read(f"{name}.{part}", wide) for part in ("weight", "bias"))
        return Norm(weight, bias, groups, eps)

    def convolution(self, name: str) -> CausalConvolution:
        return CausalConvolution(name, Taps.of(*self.kernel(f"{name}.conv", 3)))

    def frame_output(self) -> FrameOutput:
        weight, bias = self.kernel("decoder.conv_out.conv", 3)  # [3, C, 3, 3, 3]
        by_tap = weight.movedim(2, 0).flatten(0, 1).unsqueeze(2)  # [9, C, 1, 3, 3]
        wide = torch.promote_types(self.dtype, torch.float32)
        return FrameOutput(self.norm("decoder.norm_out"), Taps.of(by_tap, None), bias.to(wide))

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        weight, bias = self.kernel(name, 1)
        return weight.flatten(1), bias

    def joined(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Several linear layers of one input as one."""
        weights, biases = zip(*map(self.linear, names), strict=True)
        return torch.cat(weights), torch.cat(biases)

    def kernel(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """Weight [O, C, size, size, size] and bias [O] of a convolution."""
        weight, bias = self.read(f"{name}.weight"), self.read(f"{name}.bias")
        if weight.shape[2:] != (size,) * 3:
            raise UnknownVaeError(f"{name}.weight is {tuple(weight.shape)}, not of {size} taps a side")
        return weight, bias

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if name not in self.weights:
            raise UnknownVaeError(f"it has no {name}")
        self.unread.discard(name)
        return self.weights[name].detach().to(self.device, dtype or self.dtype)

    def check_all_used(self) -> None:
        if self.unread:
            raise UnknownVaeError(f"{min(self.unread)} has no place in the decoder")
