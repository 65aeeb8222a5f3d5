"""Measures a magnitude table along one run in which nothing is skipped."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .magnitudes import MagnitudeTable
from .run import last_stage


class MagnitudeRun:
    """Takes the place of a SkippingRun. Counts the section's tokens; of a batch, all samples together."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels = levels
        self.step = 0
        self.residual: Tensor | None = None
        self.ratios: list[Tensor] = []  # on the device until the end

    def begin(self, step: int) -> None:
        self.step = step

    def __call__(
        self,
        section: Tensor,  # [B, S, D]
        _modulated: Callable[[], Tensor],
        stages: Iterator[Tensor],
        _options: dict,
    ) -> Tensor:
        """The section's tokens after the blocks."""
        residual = section.neg()
        out = last_stage(stages)
        residual += out
        if self.step == len(self.ratios):  # the first call of its step
            before = residual if self.residual is None else self.residual
            self.ratios.append((_size(residual) / _size(before)).mean())
            self.residual = residual
        return out

    def table(self) -> MagnitudeTable:
        """Raises ValueError when the run did not go through all steps or a ratio is not finite."""
        ratios = torch.stack(self.ratios).tolist() if self.ratios else []
        if len(ratios) != len(self.levels) or not all(0 < ratio < float("inf") for ratio in ratios):
            raise ValueError(
                f"The calibration got ratios {ratios} for {len(self.levels)} steps; use a sampler that calls the model "
                "once a step, and check the checkpoint file."
            )
        return MagnitudeTable(self.levels, tuple(ratios))


def _size(residual: Tensor) -> Tensor:
    return torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32)  # [B, S]
