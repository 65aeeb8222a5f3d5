"""Which optimiser updates which parameter, and how fast over time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .muon import Muon

ByName = Callable[[str, Tensor], bool]
"""(name, parameter) -> whether it is one of those."""

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "context_embedder.token_refiner.")


@dataclass(frozen=True)
class Rates:
    """Learning rates at full speed, and decay per unit of rate."""

    muon: float = 0.02
    adamw: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass(frozen=True)
class Schedule:
    """Of the whole training, however many runs it takes: rise, full speed, linear fall to 0 at `steps`."""

    steps: int
    warm_up: int = 100  # steps
    decay: float = 0.4  # share of all steps

    def factor(self, step: int) -> float:
        """Of the learning rates, for the step that follows `step` finished ones."""
        rise = (step + 1) / self.warm_up if self.warm_up else 1.0
        fall = (self.steps - step) / (self.steps * self.decay) if self.decay else 1.0
        return max(min(1.0, rise, fall), 0.0)


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """The matrices inside blocks, which Muon is made for; embedders and the output are AdamW's."""
    return parameter.ndim == 2 and name.startswith(BLOCKS)


def everything(_name: str) -> bool:
    """Trains all parameters."""
    return True


class Optimizers:
    """Muon and AdamW on a partition of the named parameters, driven as one."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rates: Rates | None = None, uses_muon: ByName = is_block_matrix
    ) -> None:
        rates = rates or Rates()
        is_cuda = any(parameter.is_cuda for parameter in parameters.values())
        matrices = {name: parameter for name, parameter in parameters.items() if uses_muon(name, parameter)}
        rest = {name: parameter for name, parameter in parameters.items() if name not in matrices}
        # an optimizer without parameters is refused by torch
        self.members: list[tuple[list[str], float, torch.optim.Optimizer]] = []
        if matrices:
            muon = Muon(matrices.values(), rates.muon, weight_decay=rates.weight_decay)
            self.members.append((list(matrices), rates.muon, muon))
        if rest:
            adamw = torch.optim.AdamW(
                rest.values(), rates.adamw, rates.betas, weight_decay=rates.weight_decay, fused=is_cuda
            )
            self.members.append((list(rest), rates.adamw, adamw))

    def step(self, factor: float) -> None:
        """One update at `factor` times the full rates; gradients are dropped afterwards."""
        for _, rate, optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """What the updates so far left behind, as "parameter/entry" -> tensor."""
        out = {}
        for names, _, optimizer in self.members:
            for number, entries in optimizer.state_dict()["state"].items():
                out.update({f"{names[number]}/{key}": value for key, value in entries.items()})
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of state(); parameters that had no update yet have no entries."""
        for names, _, optimizer in self.members:
            entries: dict[int, dict[str, Tensor]] = {}
            for number, name in enumerate(names):
                own = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
                if own:
                    entries[number] = own
            optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
