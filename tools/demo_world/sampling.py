"""Random films, from combinations for training or from those that only tests may show."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, VARIANTS, Scenes

_HELD_OUT_PART = 10  # one combination of ten
_MARGIN = 0.25  # of the start from the picture's edges, as a part of the picture


def held_out(scenes: Scenes) -> Tensor:
    """Whether a film's (shape, colour, background) is kept for tests: bool [B].

    Every shape, colour and background, and every two of them together, also occur in training.
    """
    return _reserved(scenes.shape, scenes.colour, scenes.background)


def random_scenes(
    count: int,
    sections: int,
    generator: torch.Generator,
    *,
    for_tests: bool = False,
    odds: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
) -> Scenes:
    """Films of random looks and motions; for_tests: of held-out combinations only, else of the others only.

    odds: how often a motion is drawn, where it is not once in MOTIONS.

    The generator is a CPU one, so that a seed gives the same films on every device. The object starts well inside the
    picture.
    """
    combinations = torch.cartesian_prod(*(torch.arange(len(names)) for names in (SHAPES, COLOURS, BACKGROUNDS)))
    combinations = combinations[_reserved(*combinations.unbind(1)) == for_tests]  # [combinations, 3]
    drawn = torch.randint(len(combinations), (count,), generator=generator)
    shape, colour, background = combinations[drawn].unbind(1)
    scenes = Scenes(
        shape=shape,
        colour=colour,
        size=torch.randint(len(SIZES), (count,), generator=generator),
        background=background,
        start=_MARGIN + (1 - 2 * _MARGIN) * torch.rand(count, 2, generator=generator),
        variant=torch.rand(count, VARIANTS, generator=generator),
        motions=_motions(count, sections, generator, odds),
    )
    return scenes.to(device)


def _motions(count: int, sections: int, generator: torch.Generator, odds: Mapping[str, float] | None) -> Tensor:
    if not odds:
        return torch.randint(len(MOTIONS), (count, sections), generator=generator)
    weights = torch.tensor([odds.get(motion, 1.0) for motion in MOTIONS])
    return weights.multinomial(count * sections, replacement=True, generator=generator).unflatten(0, (count, sections))


def _reserved(shape: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Factors without a divisor in common with ten spread the reserved ones over all shapes, colours, backgrounds."""
    return (shape + 3 * colour + 7 * background) % _HELD_OUT_PART == 0
