"""MLPs on some tokens at a time, where memory asks for it: tokens do not see each other there."""

import math
from collections.abc import Callable

from torch import Tensor

from .config import FramePackConfig

SMALLEST_PIECE = 1024
"""Tokens. Fewer leave a card idle, and layers that are streamed may be fetched once for every piece."""
LARGEST_PIECE = 10240
"""Tokens: at 640x640 a section goes through in halves, which take a quarter more memory than attention does."""

GAPS = 2**29
"""Bytes beside the tensors: an H200 had 0.5 GiB in gaps of torch's allocator when streamed layers passed through."""


def mlp_piece(config: FramePackConfig, tokens: int, itemsize: int, free: int) -> int:
    """Most tokens for an MLP at once, so that it and GAPS fit into `free` bytes: mlp_bytes, solved for its piece."""
    each = mlp_bytes(config, 0, itemsize, 1)
    room = free - GAPS - mlp_bytes(config, tokens, itemsize, 0)
    return min(max(room // each, SMALLEST_PIECE), LARGEST_PIECE)


def mlp_bytes(config: FramePackConfig, tokens: int, itemsize: int, piece: int) -> int:
    """Memory of a block while its MLP takes `piece` tokens of all `tokens` at once.

    A token of the piece needs the hidden layer twice, before and after the activation, and what is joined to it and
    comes out. Five more tensors of the blocks' width live for all: stream, norm, attention, branch, sum.
    """
    return itemsize * (5 * tokens * config.width + 2 * piece * (config.mlp_dim + config.width))


def in_pieces(function: Callable[..., Tensor], piece: int | None, *inputs: Tensor) -> Tensor:
    """function of inputs [B, L, ...], which treats every token alone, on at most `piece` tokens at a time.

    Its result is shaped as the first input; of pieces it gets the place to write to as `out`. Pieces are equally long,
    since a short one fills a card badly.
    """
    length = inputs[0].shape[1]
    if piece is None or piece >= length:
        return function(*inputs)
    out, size = inputs[0].new_empty(inputs[0].shape), math.ceil(length / math.ceil(length / piece))
    for first in range(0, length, size):
        here = slice(first, first + size)
        function(*(x[:, here] for x in inputs), out=out[:, here])
    return out
