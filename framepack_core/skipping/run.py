"""One sampling run with skipped steps: what is kept of every branch, and how a step is computed or re-used.

A branch is one conditioning entry (positive, negative) as the blocks see it. Everything here lives as long as one
run of a sampler, which for us is one section.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..section_plan import Direction

SKIPPER = "framepack_skipper"
"""Of transformer_options: what the transformer gives its blocks to instead of compute_all."""
RETENTION = 0.2  # MagCache4FramePack: retention_ratio; the first 20 % of the steps are always computed
SIGMA_TOLERANCE = 1e-4  # relative; samplers pass the noise levels of the schedule up to float32 rounding


class Branch:
    """What is kept of one conditioning entry from step to step."""

    def __init__(self) -> None:
        self.residual: Tensor | None = None  # [B, S, D] of the section's tokens, in the compute dtype
        self.anchor: Tensor | None = None  # what the method compares the next call with
        self.error = 0.0  # what the method has added up since the last computed step
        self.step = -1  # of the latest decision, which holds for all calls at that step
        self.reuses = False


class Rule(Protocol):
    """Decides, step by step, whether the blocks may be left out."""

    def look(
        self, section: Tensor, modulated: Callable[[], Tensor], stages: Iterator[Tensor], /
    ) -> tuple[Tensor, Tensor | None]:
        """(tokens that the residual is counted from [B, S, D], what to judge by [B, ...] or None)."""
        ...

    def reuses(self, step: int, branches: list[Branch], signals: Sequence[Tensor], must_compute: bool, /) -> bool:
        """Whether all branches of this call re-use their residual; signals is one for each, or empty."""
        ...


class Method(Protocol):
    """Settings of a method; nothing in it changes."""

    @property
    def name(self) -> str: ...

    @property
    def retention(self) -> float: ...

    def start(self, levels: tuple[float, ...], direction: Direction, /) -> Rule:
        """The rule for a run over these noise levels, the last (usually 0) not among them."""
        ...


class StepReport(NamedTuple):
    """How many steps of a run were computed; the others re-used a residual."""

    method: str
    computed: int
    steps: int

    def __str__(self) -> str:
        return f"{self.method}: computed {self.computed} of {self.steps} steps"


class SkippingRun:
    """The state of one run, and the callable that the transformer gives its blocks to.

    Always computed: the first `retention` of the steps, the last step, and whatever has no residual yet.
    """

    def __init__(self, method: Method, levels: tuple[float, ...], direction: Direction) -> None:
        self.name = method.name
        self.rule = method.start(levels, direction)
        self.steps = len(levels)
        self.retained = int(method.retention * self.steps)
        self.step = 0
        self.branches: dict[Any, Branch] = {}
        self.computed: set[int] = set()

    def begin(self, step: int) -> None:
        """A call of the model at this step of the schedule; several calls may have the same step."""
        self.step = step

    def __call__(
        self,
        section: Tensor,  # [B, S, D] before the blocks
        modulated: Callable[[], Tensor],  # -> [B, L, D], what goes into the first block's attention
        stages: Iterator[Tensor],  # [B, S, D] after the first block, then after the last; may work in place
        options: dict,  # the host's transformer_options of this call
    ) -> Tensor:
        """The section's tokens after the blocks, computed or the last residual added again."""
        branches = self._branches(options)
        base, signal = self.rule.look(section, modulated, stages)
        if self._reuses(branches, () if signal is None else signal.chunk(len(branches))):
            residuals = [branch.residual for branch in branches if branch.residual is not None]
            return base + (residuals[0] if len(residuals) == 1 else torch.cat(residuals))
        residual = base.neg()  # a copy, because the blocks may overwrite their input
        out = last_stage(stages)
        residual += out
        for branch, rows in zip(branches, residual.chunk(len(branches)), strict=True):
            branch.residual = rows
        self.computed.add(self.step)
        return out

    def report(self) -> StepReport:
        return StepReport(self.name, len(self.computed), self.steps)

    def _branches(self, options: dict) -> list[Branch]:
        """One for each conditioning entry of the batch; replaced blocks (skip-layer guidance) make another branch."""
        replaced = frozenset(options.get("patches_replace", {}).get("dit", {}))
        entries = options.get("uuids") or (None,)
        return [self.branches.setdefault((entry, replaced), Branch()) for entry in entries]

    def _reuses(self, branches: list[Branch], signals: Sequence[Tensor]) -> bool:
        """One decision for each step: later calls at the same noise level (Heun and the like) follow the first."""
        must_compute = (
            self.step < self.retained
            or self.step >= self.steps - 1
            or any(branch.residual is None for branch in branches)
        )
        if all(branch.step == self.step for branch in branches):
            return not must_compute and all(branch.reuses for branch in branches)
        reuses = self.rule.reuses(self.step, branches, signals, must_compute)
        for branch in branches:
            branch.step, branch.reuses = self.step, reuses
        return reuses


def compute_all(_section: Tensor, _modulated: Callable[[], Tensor], stages: Iterator[Tensor], _options: dict) -> Tensor:
    """What happens where nothing is skipped."""
    return last_stage(stages)


def last_stage(stages: Iterator[Tensor]) -> Tensor:
    """Runs the blocks to their end, keeping only the last tokens."""
    tokens = next(stages)
    for later in stages:
        tokens = later
    return tokens


def step_at(levels: Sequence[float], sigma: float) -> int:
    """The step that a noise level belongs to: of levels from high to low, the last that is not below sigma."""
    reached = [step for step, level in enumerate(levels) if level >= sigma * (1 - SIGMA_TOLERANCE)]
    return reached[-1] if reached else 0


def relative_l1(tensors: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[float]:
    """mean |x - anchor| / mean |anchor| of each pair, in their dtype; one wait for the device for all of them."""
    distances = [(x - a).abs().mean() / a.abs().mean() for x, a in zip(tensors, anchors, strict=True)]
    return torch.stack(distances).tolist()
