"""Mistakes that a FramePack implementation could make.

Films made with one must be called wrong, or the measures are blind. One shows in the distance from the world's own film
alone: a swapped history, forward (docs/benchmarks.md).

Those of the history are changes of MODEL: a wrapper around its call that alters what it is given.
"""

from collections.abc import Callable
from typing import Any

import torch
from framepack_pack.framepack_core.comfy_host.native_model import HISTORY_RATES
from framepack_pack.framepack_core.history import History
from torch import Tensor

from .films import Prompts


def without_history(model: Any) -> Any:
    """Every frame that a section sees, the start image among them, is the zeros of "nothing there yet"."""
    return _with_history(model, torch.zeros_like)


def with_swapped_history(model: Any) -> Any:
    """The frames of every rate in the wrong order: the start image changes places with the section's neighbour."""
    return _with_history(model, lambda frames: frames.flip(2))


def reversed_sections(history: History) -> History:
    """The sections put together in the wrong order."""
    return history._replace(sections=history.sections[::-1])


def shifted_prompts(prompts: Prompts) -> Prompts:
    """Every section gets the prompt of the one after it, the last one that of the first."""
    return [*prompts[1:], prompts[0]]


def _with_history(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    def altered(executor: Any, *args: Any, **conds: Any) -> Tensor:
        history = {name: change(conds[name]) for name in HISTORY_RATES if name in conds}
        return executor(*args, **{**conds, **history})

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "framepack_control", altered)
    return model
