"""TeaCache: steps are skipped while the input of the first block changes little.

Source: Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108), with
the polynomial and threshold of FP hunyuan_video_packed.py initialize_teacache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .run import RETENTION, Branch, relative_l1

THRESHOLD = 0.15  # FP demo_gradio.py: rel_l1_thresh
RESCALE = (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)  # FP: highest power first


@dataclass(frozen=True)
class TeaCache:
    """With retention 0 it decides as the original does. The device is waited for once a step and branch."""

    threshold: float = THRESHOLD
    retention: float = RETENTION
    name: str = "TeaCache"

    def start(self, *_: Any) -> "TeaCache":
        return self

    def look(
        self, section: Tensor, modulated: Callable[[], Tensor], _stages: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return section, modulated()

    def reuses(self, _step: int, branches: list[Branch], signals: Sequence[Tensor], must_compute: bool) -> bool:
        anchors = [branch.anchor for branch in branches if branch.anchor is not None]
        reuses = not must_compute
        if reuses:
            for branch, distance in zip(branches, relative_l1(signals, anchors), strict=True):
                branch.error += rescaled(distance)
            reuses = all(branch.error < self.threshold for branch in branches)
        for branch, signal in zip(branches, signals, strict=True):
            branch.anchor = signal  # of every step, skipped or not
            branch.error = branch.error if reuses else 0.0
        return reuses


def rescaled(distance: float) -> float:
    """The change that the output is expected to make, by Horner's rule."""
    change = 0.0
    for coefficient in RESCALE:
        change = change * distance + coefficient
    return change
