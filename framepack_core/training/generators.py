"""Where all chance of a training comes from."""

from typing import NamedTuple

import torch


class Generators(NamedTuple):
    """Two streams, so that every machine draws the same examples whatever its noise."""

    choices: torch.Generator  # which examples; on the CPU
    noise: torch.Generator  # noise and its levels; where the model is


def new_generators(seed: int, device: torch.device) -> Generators:
    """Streams that this seed begins."""
    return Generators(torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed + 1))
