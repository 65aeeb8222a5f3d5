"""First-block cache: the first block always runs, and the others are skipped while it adds about the same.

Source: the idea of FBCache in github.com/chengzeyi/ParaAttention, by its documentation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .run import RETENTION, Branch, relative_l1

THRESHOLD = 0.06  # ParaAttention's documentation, for HunyuanVideo; nobody has calibrated it for FramePack


@dataclass(frozen=True)
class FirstBlockCache:
    """Compares with the last computed step, so that many small changes add up. One wait for the device as TeaCache."""

    threshold: float = THRESHOLD
    retention: float = RETENTION
    name: str = "First block cache"

    def start(self, *_: Any) -> "FirstBlockCache":
        return self

    def look(
        self, section: Tensor, _modulated: Callable[[], Tensor], stages: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        added = section.neg()  # a copy, because the block may overwrite its input
        first = next(stages)
        return first, added.add_(first)

    def reuses(self, _step: int, branches: list[Branch], signals: Sequence[Tensor], must_compute: bool) -> bool:
        anchors = [branch.anchor for branch in branches if branch.anchor is not None]
        if not must_compute and all(distance < self.threshold for distance in relative_l1(signals, anchors)):
            return True
        for branch, signal in zip(branches, signals, strict=True):
            branch.anchor = signal  # of the computed step only
        return False
