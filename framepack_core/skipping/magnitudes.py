"""How the size of the blocks' residual goes from step to step: published tables, others as text, any schedule."""

import json
import math
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from ..constants import SHIFT_MAX, STEPS
from ..schedule import flow_sigmas
from ..section_plan import Direction

SAME_SIGMA = 1e-5  # absolute; texts hold six decimals

# Source: github.com/Zehong-Ma/MagCache at df81cb1 (Apache-2.0), MagCache4FramePack/magcache_demo_gradio.py and
# magcache_demo_gradio_f1.py, initialize_magcache: 25 steps of FramePack's own schedule at its 640 sizes
PUBLISHED_RATIOS = {
    Direction.BACKWARD: (
        1.0, 1.26562, 1.23438, 1.03125, 1.02344, 1.03906, 1.01562, 1.03906, 1.05469, 1.02344, 1.03906, 0.99609, 1.03125,
        1.02344, 1.01562, 1.02344, 1.00781, 1.04688, 0.98828, 1.0, 1.00781, 0.98828, 0.94141, 0.94141, 0.78906,
    ),
    Direction.FORWARD: (
        1.0, 1.25781, 1.08594, 1.02344, 1.00781, 1.02344, 1.00781, 1.02344, 1.05469, 0.99609, 1.03906, 1.00781, 1.01562,
        1.00781, 1.02344, 1.01562, 0.98047, 1.05469, 0.98047, 0.96875, 1.03125, 0.97266, 0.9375, 0.96484, 0.78516,
    ),
}  # fmt: skip


class MagnitudeTable(NamedTuple):
    """Measured along one schedule."""

    sigmas: tuple[float, ...]  # noise levels of the steps, falling; without the final 0
    ratios: tuple[float, ...]  # mean over the tokens of |residual| / |residual of the step before|; the first is 1

    def fits(self, levels: tuple[float, ...]) -> bool:
        """Whether it was measured at these very noise levels."""
        return len(levels) == len(self.sigmas) and all(
            abs(level - sigma) <= SAME_SIGMA for level, sigma in zip(levels, self.sigmas, strict=True)
        )

    def ratios_at(self, levels: tuple[float, ...]) -> tuple[float, ...]:
        """Ratios between these noise levels, as measured, or interpolated for another schedule.

        The product of the ratios so far is the residual's size at a noise level, whatever the steps in between. Its
        logarithm is interpolated over sigma; below the last sigma it goes on as before, above the first it is 0.
        """
        if self.fits(levels):
            return self.ratios
        sizes = list(accumulate(math.log(ratio) for ratio in self.ratios))
        at = [_interpolated(self.sigmas, sizes, level) for level in levels]
        return (1.0, *(math.exp(size - before) for before, size in pairwise(at)))

    def text(self) -> str:
        """As JSON, for a widget or a file."""
        sigmas, ratios = ([round(value, 6) for value in values] for values in self)
        return json.dumps({"sigmas": sigmas, "ratios": ratios})


def published_table(direction: Direction) -> MagnitudeTable:
    """MagCache4FramePack's figures for FramePack (backward) or F1 (forward)."""
    return MagnitudeTable(tuple(flow_sigmas(STEPS, SHIFT_MAX)[:-1].tolist()), PUBLISHED_RATIOS[direction])


def read_table(text: str) -> MagnitudeTable:
    """The table that MagnitudeTable.text wrote. Raises ValueError for anything else."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The ratios are not JSON ({error}); {_REMEDY}") from error
    if not isinstance(values, dict) or not {"sigmas", "ratios"} <= values.keys():
        raise ValueError(f"The ratios need the lists 'sigmas' and 'ratios', got {text[:60]!r}; {_REMEDY}")
    table = MagnitudeTable(_positive(values["sigmas"], "sigmas"), _positive(values["ratios"], "ratios"))
    if len(table.sigmas) != len(table.ratios) or len(table.sigmas) < 2:
        raise ValueError(
            f"The ratios need two lists of one length, 2 or more, got {len(table.sigmas)} sigmas and "
            f"{len(table.ratios)} ratios; {_REMEDY}"
        )
    if any(later >= sigma for sigma, later in pairwise(table.sigmas)):
        raise ValueError(f"The sigmas of the ratios must fall from step to step; {_REMEDY}")
    return table


_REMEDY = "take them from FramePack Calibrate Skipping."


def _positive(values: Any, name: str) -> tuple[float, ...]:
    numbers = values if isinstance(values, list) else [values]
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"'{name}' of the ratios holds {value!r}, which is not a number above 0; {_REMEDY}")
    return tuple(float(value) for value in numbers)


def _interpolated(sigmas: tuple[float, ...], sizes: list[float], level: float) -> float:
    if level >= sigmas[0]:
        return sizes[0]
    right = next((i for i, sigma in enumerate(sigmas) if sigma <= level), len(sigmas) - 1)
    slope = (sizes[right] - sizes[right - 1]) / (sigmas[right] - sigmas[right - 1])
    return sizes[right] + slope * (level - sigmas[right])
