"""Two layers of video autoencoders that train several times faster when they are written otherwise."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FastLayers(TorchFunctionMode):
    """While entered, replicate padding and group norms of any module run in the ways below; results are the same.

    torch's backward pass of replicate padding adds with atomics, and autocast runs group norms, hence everything up to
    the next convolution, in float32. A mode, since the modules are a host's.
    """

    def __torch_function__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.pad and kwargs.get("mode") == "replicate":
            return pad_by_repeating(args[0], args[1] if len(args) > 1 else kwargs["pad"])
        if func is F.group_norm:
            return _group_norm(*args, **kwargs)
        return func(*args, **kwargs)


def pad_by_repeating(x: Tensor, pad: tuple[int, ...]) -> Tensor:
    """F.pad(mode="replicate") as slices that are repeated and joined, axis by axis from the last."""
    for number in range(len(pad) // 2):
        before, after = pad[2 * number : 2 * number + 2]
        axis = x.ndim - 1 - number
        parts = [x]
        if before:
            parts.insert(0, _repeated(x.narrow(axis, 0, 1), axis, before))
        if after:
            parts.append(_repeated(x.narrow(axis, x.shape[axis] - 1, 1), axis, after))
        x = torch.cat(parts, dim=axis) if len(parts) > 1 else x
    return x


def _repeated(edge: Tensor, axis: int, count: int) -> Tensor:
    sizes = list(edge.shape)
    sizes[axis] = count
    return edge.expand(sizes)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """In the dtype of its input; statistics are float32 inside."""
    with torch.autocast(input.device.type, enabled=False):
        weight, bias = (None if part is None else part.to(input.dtype) for part in (weight, bias))
        return F.group_norm(input, num_groups, weight, bias, eps)
