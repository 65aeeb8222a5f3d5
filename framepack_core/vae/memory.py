"""What a stream of the decoder needs, from the shapes of its weights."""

from .attention import QUERIES
from .carried import PREFETCHED, SMALL
from .decoder import BLOCK_BYTES, Decoder, Level
from .layers import CausalConvolution

SCORE_COPIES = 3  # scores, their softmax, and what softmax computes them from
COLOURS, FLOAT32 = 3, 4
CARRIED_SUMS = 3  # of each of two frames: one for each tap in time


def bytes_needed(decoder: Decoder, height: int, width: int, piece: int, middle: int) -> int:
    """Bytes of a stream over latents of height x width cells, weights included; the decoder may be on the meta device.

    piece, middle: as for Decoder.stream. The sum of the weights, of the carried frames that stay on the device, and of
    what the largest level holds (its frames, carried ones on their way back, a convolution's input, latents that wait)
    or the middle, if that is more, and of what the last convolution carries and gives.
    """
    unit = decoder.latent_in[0].element_size()
    cells, frames, carried, largest = height * width, piece, 0, 0
    for level in decoder.levels:
        layers = [2 * channels * cells * unit for channels in _carried_channels(level)]
        carried += sum(size for size in layers if size < SMALL)
        fetched = max(layers) * PREFETCHED * 3 // 2  # with room for a frame more
        widest = max(_channels(block.conv1) for block in level.blocks)
        narrow = level.blocks[-1].conv2.taps.weight.shape[-1]
        kept = max(frames * widest, 2 * frames * narrow) * cells * unit
        largest = max(largest, kept + fetched + max(4 * widest * cells * unit, BLOCK_BYTES))
        if level.upsampler is not None:
            cells *= 4
            frames *= 2 if level.upsampler.doubles_time else 1
    pictures = (2 * frames + 2 * CARRIED_SUMS) * COLOURS * FLOAT32 * cells  # a piece that is made, and one on its way
    latents, channels = middle * height * width, _channels(decoder.levels[0].blocks[0].conv1)
    scores = SCORE_COPIES * QUERIES * latents
    in_the_middle = (6 * latents * channels + scores) * unit
    waiting = latents * channels * unit  # on their way from the middle to the levels
    return _weights(decoder) + carried + pictures + max(largest + waiting, in_the_middle)


def _carried_channels(level: Level) -> list[int]:
    """Of the layers of a level; the upsamplers that double time carry one frame, the others two."""
    channels = [_channels(convolution) for block in level.blocks for convolution in (block.conv1, block.conv2)]
    if level.upsampler is not None:
        taps = level.upsampler.phases[0].weight
        channels.append(taps.shape[-2] * (taps.shape[0] - 1) // 2)
    return channels


def _channels(convolution: CausalConvolution) -> int:
    return convolution.taps.weight.shape[-2]


def _weights(decoder: Decoder) -> int:
    """Bytes of all convolutions, with which the other weights are small."""
    blocks = [
        decoder.middle.block1,
        decoder.middle.block2,
        *(block for level in decoder.levels for block in level.blocks),
    ]
    taps = [convolution.taps for block in blocks for convolution in (block.conv1, block.conv2)]
    for level in decoder.levels:
        taps += level.upsampler.phases if level.upsampler is not None else ()
    return sum(part.weight.numel() * part.weight.element_size() for part in taps)
