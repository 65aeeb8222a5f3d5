"""The decoder as a stream of pieces: latents in, frames out, every latent decoded once, memory that does not grow.

Source of the architecture: the HunyuanVideo report (arXiv 2412.03603, section 4.1) and the names and shapes of the
released weights. A piece of latents goes through all levels before the next one does, and each convolution carries its
last input frames over. Norms see one piece at a time, and so does the attention of the middle, whose pieces are longer.
With pieces of two latents that is what ComfyUI 0.33.0 computes in one call, when the middle takes the film as a whole.

Memory at 640x640 in bfloat16, pieces of two latents, in 10^9 bytes: a frame of 128 channels is 0.105.
    block by block      8 frames of 256 channels at the start of level 0, each freed as it is used       1.7
    padded input        4 frames of 256 channels                                                         0.8
    carried frames      those of small layers, and of the next layer on their way back                   0.5
    shortcut            of the block in hand                                                             0.2
    weights             144 million, and 31 million more for the upsamplers' phases                      0.3
    waiting             latents behind the middle, pictures on their way to the host                     0.3
Pieces of one latent halve the first line. Large carried frames, 2.6, wait in host memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import attend
from .carried import Carried
from .convolution import Taps, convolve
from .elementwise import padded
from .layers import Blocks, CausalConvolution, Norm, ResidualBlock, Upsampler

PIECE = 2  # latents that go through the levels together
MIDDLE = 20  # latents that see each other in the middle: a window of two sections and the start image
BLOCK_BYTES = 2**28  # of the frames that a convolution is given at a time


@dataclass(frozen=True)
class Middle:
    """Residual block, attention of one head over all positions of a piece, residual block."""

    block1: ResidualBlock
    norm: Norm
    qkv: tuple[Tensor, Tensor]  # weight [3 C, C], bias [3 C]
    projection: tuple[Tensor, Tensor]
    block2: ResidualBlock

    def __call__(self, x: Tensor, carried: Carried) -> Tensor:
        """[F, H, W, C] -> the same."""
        (x,) = self.block1([x], carried)
        scale, shift = self.norm([x])
        normed = torch.empty_like(x)
        for frame, out in zip(x, normed, strict=True):  # one by one, for they are wider in between
            out.copy_(torch.addcmul(shift, frame.to(scale.dtype), scale))
        q, k, v = F.linear(normed.flatten(0, 2), *self.qkv).chunk(3, dim=-1)  # [F H W, C]
        del normed
        x = x + F.linear(attend(q, k, v), *self.projection).view(x.shape)
        return self.block2([x], carried)[0]


@dataclass(frozen=True)
class Level:
    """Residual blocks at one resolution, and the way to the next."""

    blocks: tuple[ResidualBlock, ...]
    upsampler: Upsampler | None

    def __call__(self, frames: Blocks, carried: Carried) -> Blocks:
        for block in self.blocks:
            frames = block(frames, carried)
        if self.upsampler is None:
            return frames
        larger = []
        while frames:
            larger += _upsampled(frames.pop(0), self.upsampler, carried)
        carried.settle(self.upsampler.name)
        return larger


@dataclass(frozen=True)
class FrameOutput:
    """The last norm and convolution, whose sums are carried in the place of its wide input frames."""

    norm: Norm
    taps: Taps  # 1x3x3, to [three in time, 3] channels
    bias: Tensor  # [3]

    NAME = "conv_out"

    def __call__(self, blocks: Blocks, carried: Carried) -> Iterator[Tensor]:
        """[F, H, W, C] -> [F, H, W, 3], float32 or wider."""
        norm = self.norm(blocks)
        while blocks:
            x = blocks.pop(0)
            count, height, width, channels = x.shape
            frames = padded(x, norm, x.new_empty(count, height + 2, width + 2, channels))
            sums = x.new_empty(count, height, width, 9, dtype=self.bias.dtype)
            convolve(frames, self.taps, sums)
            before = carried.take(self.NAME)
            sums = torch.cat([sums[:1].expand(2, -1, -1, -1) if before is None else before, sums])
            carried.put(self.NAME, sums[-2:].clone(), 2)
            yield sums[:-2, ..., :3] + sums[1:-1, ..., 3:6] + sums[2:, ..., 6:] + self.bias


@dataclass(frozen=True)
class Decoder:
    """All layers, for one film after the other."""

    latent_in: tuple[Tensor, Tensor]  # the 1x1x1 convolution before the decoder
    conv_in: CausalConvolution
    middle: Middle
    levels: tuple[Level, ...]  # from the smallest pictures to the largest
    frames_out: FrameOutput

    @torch.no_grad()
    def stream(self, latents: Tensor, piece: int = PIECE, middle: int = MIDDLE) -> Iterator[Tensor]:
        """Frames of latents [1, 16, T, h, w] in order, [F, H, W, 3] a piece; 4 T - 3 together, values about -1 to 1.

        piece, middle: latents that share the statistics of norms, in the levels and in the middle. The latents may lie
        elsewhere; a piece of the middle's is brought to the weights' device and dtype at a time.
        """
        carried = Carried(self.latent_in[0].device)
        waiting: list[Tensor] = []  # latents that have been through the middle
        total = latents.shape[2]
        for start in range(0, total, middle):
            weight = self.latent_in[0]
            x = latents[0, :, start : start + middle].to(weight).movedim(0, -1)  # [F, h, w, C]
            x = self.conv_in(F.linear(x, *self.latent_in).contiguous(), carried, None)
            x = self.middle(x, carried)
            carried.settle(self.conv_in.name)
            waiting += x.split(1)
            del x
            ready = len(waiting) if start + middle >= total else len(waiting) // piece * piece
            for first in range(0, ready, piece):
                blocks = [torch.cat(waiting[first : min(first + piece, ready)])]
                for level in self.levels:
                    blocks = level(blocks, carried)
                yield torch.cat(list(self.frames_out(blocks, carried)))
            del waiting[:ready]


def _upsampled(x: Tensor, upsampler: Upsampler, carried: Carried) -> Iterator[Tensor]:
    """Upsampled frames of a block, in blocks that are small enough, or of one frame of the block."""
    grown = 4 * x[0].numel() * x.element_size() * (2 if upsampler.doubles_time else 1)
    for part in x.split(max(1, BLOCK_BYTES // grown)):
        yield upsampler(part, carried)
