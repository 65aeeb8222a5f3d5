"""StepInputs made once for a noise level and a prompt, and looked up after that.

They make up 30 % of the released weights and depend on nothing that changes within a film (performance.md 3.1), so the
layers that make them need not be on the card, nor cross the bus, in the step loop.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from .transformer import SectionInputs, StepInputs

Make = Callable[[Sequence[float]], list[StepInputs]]
"""timesteps -> the inputs of each; the layers behind them are visited once."""


class StepTable:
    """Belongs to a run of a sampler and is freed with it. Nothing is kept that the section before did not use."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, float], StepInputs] = {}
        self._used: set[tuple[Hashable, float]] = set()

    def __len__(self) -> int:
        return len(self._known)

    def next_section(self) -> None:
        """Drop what has not been used since the last call: prompts and noise levels that went by."""
        self._known = {entry: self._known[entry] for entry in self._known if entry in self._used}
        self._used = set()

    def look_up(self, prompt: Hashable, timestep: float, schedule: Sequence[float], make: Make) -> StepInputs:
        """The inputs at a timestep. prompt stands for the content of all else that they are made from.

        The first timestep of a schedule to be asked for brings the others along; one that the sampler invents is made
        alone, and remembered.
        """
        if (prompt, timestep) not in self._known:
            wanted = schedule if timestep in schedule else [timestep]
            missing = [t for t in dict.fromkeys(wanted) if (prompt, t) not in self._known]
            for t, inputs in zip(missing, make(missing), strict=True):
                self._known[prompt, t] = inputs
        self._used.add((prompt, timestep))
        return self._known[prompt, timestep]


def join_steps(steps: Sequence[StepInputs]) -> StepInputs:
    """One batch of inputs [1, ...] that were made one by one; prompts of unequal length are filled with zeros."""
    if all(step is steps[0] for step in steps):
        return steps[0]._replace(
            prompt=steps[0].prompt.expand(len(steps), -1, -1),
            image=None if steps[0].image is None else steps[0].image.expand(len(steps), -1, -1),
        )
    lengths = tuple(step.prompt.shape[1] for step in steps)
    images = [step.image for step in steps if step.image is not None]
    return StepInputs(
        vectors=torch.cat([step.vectors for step in steps]),
        prompt=torch.cat([_filled(step.prompt, max(lengths)) for step in steps]),
        image=torch.cat(images) if images else None,
        lengths=None if min(lengths) == max(lengths) else lengths,
    )


def join_sections(sections: Sequence[SectionInputs]) -> SectionInputs:
    """One batch of the parts of a batch, whose places are the same."""
    if len(sections) == 1:
        return sections[0]
    histories = [section.history for section in sections if section.history is not None]
    return SectionInputs(torch.cat(histories) if histories else None, sections[0].rotation)


def _filled(prompt: Tensor, length: int) -> Tensor:
    missing = length - prompt.shape[1]
    return prompt if missing == 0 else torch.cat([prompt, prompt.new_zeros(1, missing, prompt.shape[2])], dim=1)
