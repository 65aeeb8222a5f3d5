"""Blocks whose weights the host brings to the card one block ahead: its service for dynamic memory (ComfyUI 0.33).

Without it the host fetches layer by layer, each while the one before computes: large weights after a small layer are
waited for, and those of an MLP in pieces are fetched for each piece.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

try:
    from comfy import model_prefetch
except ImportError:  # ComfyUI up to 0.3.75
    model_prefetch = None


def prefetched(blocks: Iterable[nn.Module], x: Tensor, options: dict) -> Iterator[nn.Module]:
    """The blocks in order; what was fetched is let go when the next one is asked for, or none any more."""
    blocks = list(blocks)
    queue = _queue(blocks, x, options)
    if queue is None:
        yield from blocks
        return
    try:
        for block in blocks:
            model_prefetch.prefetch_queue_pop(queue, x.device, block)
            yield block
    finally:  # also after a step cache that has seen enough
        queue[1:] = [None]
        model_prefetch.prefetch_queue_pop(queue, x.device, None)


def _queue(blocks: list[nn.Module], x: Tensor, options: dict) -> Any:
    """The host's; None where it does not fetch ahead."""
    return None if model_prefetch is None else model_prefetch.make_prefetch_queue(blocks, x.device, options)
