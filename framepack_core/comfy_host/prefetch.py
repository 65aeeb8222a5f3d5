"""Blocks whose weights the host brings to the card one block ahead: its service for dynamic memory (ComfyUI 0.33).

Without it the host fetches layer by layer, each while the one before computes: large weights after a small layer are
waited for, and those of an MLP in pieces are fetched for each piece.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

try:
    from comfy import model_prefetch
except ImportError:  # older hosts, as ComfyUI 0.3.75
    model_prefetch = None


def prefetched(blocks: Iterable[nn.Module], x: Tensor, options: dict) -> Iterator[nn.Module]:
    """The blocks in order; what was fetched is let go when the next one is asked for, or none any more.

    After an error the host lets go of it, at the end of the node.
    """
    blocks = list(blocks)
    queue = _queue(blocks, x, options)
    if queue is None:
        yield from blocks
        return
    try:
        for block in blocks:
            model_prefetch.prefetch_queue_pop(queue, x.device, block)
            yield block
    except GeneratorExit:  # a step cache has seen enough
        queue[1:] = [None]
    model_prefetch.prefetch_queue_pop(queue, x.device, None)


def _queue(blocks: list[nn.Module], x: Tensor, options: dict) -> Any:
    """The host's, of the layers of each block; None where it does not fetch ahead."""
    if model_prefetch is None or not options.get("prefetch_dynamic_vbars"):
        return None
    # a module each, since not all versions take lists
    layers = [nn.ModuleList(layer for layer in block.modules() if _keeps_its_weight(layer)) for block in blocks]
    return model_prefetch.make_prefetch_queue(layers, x.device, options)


def _keeps_its_weight(layer: nn.Module) -> bool:
    """A layer without LoRA or other patches: at every call the host adds those again to what it has fetched.

    For an MLP in pieces that is once too often for all pieces but the first.
    """
    changed = ("weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function")
    return hasattr(layer, "_v") and not any(getattr(layer, name, None) for name in changed)
