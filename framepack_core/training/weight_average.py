"""An exponential moving average of parameters (EMA), which makes better films than the last step's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages in float32, where the parameters are. Early on it forgets faster, so that it leaves the random start."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the parameters after `step` steps (from 1): decay is at most (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        newest = [parameters[name].detach().float() for name in self.values]
        # one launch for all
        torch._foreach_lerp_(list(self.values.values()), newest, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Overwrite the parameters with their averages."""
        for name, value in self.values.items():
            parameters[name].copy_(value)

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """The parameters are their averages inside the block, and themselves again behind it."""
        kept: dict[str, Tensor] = {name: parameters[name].detach().clone() for name in self.values}
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)
