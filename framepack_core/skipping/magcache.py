"""MagCache: the plan of a section is known before it starts, from a table of magnitude ratios.

Source: Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache" (arXiv 2506.09045), with the choices
of github.com/Zehong-Ma/MagCache, MagCache4FramePack, by its behaviour.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..section_plan import Direction
from .magnitudes import MagnitudeTable, published_table
from .run import RETENTION, Branch

MAX_CHANGE = 0.06  # MagCache4FramePack: a step whose own ratio is farther from 1 is computed
NEVER = 0.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MagCache:
    """Settings. table None takes the published one of the film's direction."""

    threshold: float  # largest error that skipped steps may add up to; 0 skips nothing
    max_skips: int  # K, largest number of skipped steps in a row
    retention: float = RETENTION
    table: MagnitudeTable | None = None
    name: str = "MagCache"

    def start(self, levels: tuple[float, ...], direction: Direction) -> "StepPlan":
        """The plan of a run; says so when the ratios had to be interpolated."""
        table = self.table or published_table(direction)
        if not table.fits(levels):
            logger.info(
                "FramePack %s: the ratios were measured at %d steps of another schedule and are interpolated for "
                "these %d",
                self.name,
                len(table.sigmas),
                len(levels),
            )
        retained = int(self.retention * len(levels))
        return StepPlan(plan_reuse(table.ratios_at(levels), self.threshold, self.max_skips, retained))


def plan_reuse(ratios: tuple[float, ...], threshold: float, max_skips: int, retained: int) -> tuple[bool, ...]:
    """For each step whether the last residual is re-used.

    The error of a skipped step is the distance from 1 of the product of the ratios since the last computed step.
    A step is re-used while the sum of those errors stays within the threshold; the first `retained` steps, the
    first of all and the last are computed.
    """
    plan = []
    product, error, skips = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        skips += 1
        reuses = (
            max(retained, 1) <= step < len(ratios) - 1
            and threshold > NEVER
            and error <= threshold
            and skips <= max_skips
            and abs(1 - ratio) <= MAX_CHANGE
        )
        if not reuses:
            product, error, skips = 1.0, 0.0, 0
        plan.append(reuses)
    return tuple(plan)


class StepPlan(NamedTuple):
    """Asks the device nothing, so the host never waits for it."""

    reused: tuple[bool, ...]

    def look(
        self, section: Tensor, _modulated: Callable[[], Tensor], _stages: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return section, None

    def reuses(self, step: int, _branches: list[Branch], _signals: Sequence[Tensor], must_compute: bool) -> bool:
        return not must_compute and self.reused[step]
