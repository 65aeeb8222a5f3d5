"""Layers of the decoder that carry their last input frames from one block of frames to the next.

A causal convolution of three taps in time needs the two frames before those it is given. The very first frame is
repeated in their place. What is carried lives in an object of the stream's (carried.py), not in the layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .carried import Carried
from .convolution import Taps, convolve
from .elementwise import channel_sums, padded

Blocks = list[Tensor]
"""Frames of a piece as tensors [F, H, W, C] that follow each other, so that each can be freed once it is used."""

ScaleShift = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Norm:
    """Group norm over all blocks of a piece, as one multiplication and one addition for each channel.

    groups None: a norm without statistics (affine_norm.py).
    """

    weight: Tensor  # float32 [C]
    bias: Tensor
    groups: int | None
    eps: float

    def __call__(self, blocks: Blocks) -> ScaleShift:
        if self.groups is None:
            return self.weight, self.bias
        of_blocks = [torch.stack(channel_sums(block)) for block in blocks]
        sums, squares = torch.stack(of_blocks).sum(0)
        number = sum(block[..., 0].numel() for block in blocks) * self.weight.numel() // self.groups
        mean = sums.view(self.groups, -1).sum(1) / number  # float64 [groups]
        variance = squares.view(self.groups, -1).sum(1) / number - mean.square()
        rate = torch.rsqrt(variance.clamp(min=0) + self.eps)
        each = self.weight.numel() // self.groups
        scale = rate.repeat_interleave(each) * self.weight
        shift = self.bias - mean.repeat_interleave(each) * scale
        return scale.float(), shift.float()


@dataclass(frozen=True)
class CausalConvolution:
    """3x3x3 taps; with a norm, of its input after SiLU."""

    name: str
    taps: Taps

    def __call__(self, x: Tensor, carried: Carried, norm: ScaleShift | None, add_to: Tensor | None = None) -> Tensor:
        """[F, H, W, C] -> [F, H, W, O], in the memory of add_to where that is given, which is added."""
        return self.convolved(self.prepared(x, carried, norm), add_to)

    def prepared(self, x: Tensor, carried: Carried, norm: ScaleShift | None) -> Tensor:
        """What is convolved, [2 + F, H + 2, W + 2, C], for which x is not needed any more."""
        return _continued(self.name, x, carried, norm, self._before)

    def convolved(self, frames: Tensor, add_to: Tensor | None = None) -> Tensor:
        """What __call__ gives, from prepared frames."""
        count, height, width = frames.shape[0] - self._before, frames.shape[1] - 2, frames.shape[2] - 2
        out = frames.new_empty(count, height, width, self.taps.weight.shape[-1]) if add_to is None else add_to
        convolve(frames, self.taps, out, add=add_to is not None)
        _carry_on(frames, self._before)
        return out

    @property
    def _before(self) -> int:
        """Frames that are carried."""
        return self.taps.weight.shape[0] - 1


@dataclass(frozen=True)
class Upsampler:
    """Pictures of twice the height and width, and, in time too, two frames from each but the film's first; convolved.

    Doubled frames repeat values, so taps that meet the same value are one tap with the sum of their weights: each of
    the eight (or four) neighbours among the outputs has a convolution of 2x2x2 (or 3x2x2) taps of its own, of the small
    frames. That is 8 (or 12) of 27 products, and the doubled frames never exist.
    """

    name: str
    phases: tuple[Taps, ...]  # [two in time], two in height, two in width; the last changes fastest
    doubles_time: bool

    @classmethod
    def of(cls, name: str, weight: Tensor, bias: Tensor, doubles_time: bool) -> "Upsampler":
        """From the weight [O, C, 3, 3, 3] of the convolution over doubled frames."""
        phases = []
        for time in (0, 1) if doubles_time else (None,):
            for row in (0, 1):
                for column in (0, 1):
                    merged = weight.to(torch.promote_types(weight.dtype, torch.float32))
                    merged = merged if time is None else _merged(merged, 2, time)
                    merged = _merged(_merged(merged, 3, row), 4, column)
                    phases.append(Taps.of(merged.to(weight.dtype), bias))
        return cls(name, tuple(phases), doubles_time)

    def __call__(self, x: Tensor, carried: Carried) -> Tensor:
        """[F, H, W, C] -> [2 F or F, 2 H, 2 W, C]; 2 F - 1 when nothing is carried yet."""
        first = self.name not in carried
        before, channels = self.phases[0].weight.shape[0] - 1, self.phases[0].weight.shape[-1]
        frames = _continued(self.name, x, carried, None, before)
        count, height, width, _ = x.shape
        steps = 2 if self.doubles_time else 1
        out = x.new_empty(steps * count, 2 * height, 2 * width, channels)
        for number, taps in enumerate(self.phases):
            row, column = number // 2 % 2, number % 2
            convolve(frames, taps, out[number // 4 :: steps, row::2, column::2], start=(row, column))
        _carry_on(frames, before)
        return out[1:] if first and self.doubles_time else out  # the film's first frame is not doubled


@dataclass(frozen=True)
class ResidualBlock:
    """Two normed convolutions beside a shortcut."""

    norm1: Norm
    conv1: CausalConvolution
    norm2: Norm
    conv2: CausalConvolution
    shortcut: tuple[Tensor, Tensor] | None  # weight [O, C] and bias [O], where the width changes

    def __call__(self, blocks: Blocks, carried: Carried) -> Blocks:
        """Empties the list that it is given, and may write where its tensors are."""
        norm, inner, outer = self.norm1(blocks), [], []
        while blocks:
            x = blocks.pop(0)
            outer.append(x if self.shortcut is None else torch.nn.functional.linear(x, *self.shortcut))
            frames = self.conv1.prepared(x, carried, norm)
            del x  # before there is an output of the convolution
            inner.append(self.conv1.convolved(frames))
            del frames
        carried.settle(self.conv1.name)
        norm = self.norm2(inner)
        for number, total in enumerate(outer):
            outer[number] = self.conv2(inner.pop(0), carried, norm, add_to=total)
        carried.settle(self.conv2.name)
        return outer


def _continued(name: str, x: Tensor, carried: Carried, norm: ScaleShift | None, before: int) -> Tensor:
    """Normed and padded frames [before + F, H + 2, W + 2, C], those carried first."""
    count, height, width, channels = x.shape
    buffer = known = carried.take(name)
    if buffer is None or len(buffer) < before + count:
        # room for pairs: a film's first block is a frame short, which was not doubled in time
        buffer = x.new_empty(before + count + count % 2, height + 2, width + 2, channels)
        if known is not None:
            buffer[:before] = known[:before]
    carried.put(name, buffer, before)
    frames = buffer[: before + count]
    padded(x, norm, frames[before:])
    if known is None:
        frames[:before] = frames[before : before + 1]
    return frames


def _carry_on(frames: Tensor, before: int) -> None:
    """Moves the last frames to the front, where the next block of frames needs them."""
    for number in range(before):
        frames[number] = frames[number - before]


def _merged(weight: Tensor, axis: int, phase: int) -> Tensor:
    """Three taps over doubled values -> two over the values; the first of a pair sees its left neighbour once more.

    Of the pair that repeats value i, the first output has taps i - 1, i, i; the second i, i, i + 1. In time, where all
    taps lie behind, the first has i - 1, i - 1, i and the second i - 1, i, i.
    """
    left, middle, right = weight.unbind(axis)
    one_then_two = phase == (1 if axis == 2 else 0)
    pair = (left, middle + right) if one_then_two else (left + middle, right)
    return torch.stack(pair, axis)
