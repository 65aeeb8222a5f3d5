"""Weights to begin with when there is no checkpoint.

Source: DiT (arXiv 2212.09748) for zero modulation and zero output, Glorot and Bengio 2010 for the rest, FramePack
(arXiv 2504.12626) for coarse history embedders that begin as averages of the fine one.
"""

import math

import torch
from torch import Tensor

from ..model.transformer import FramePackTransformer

ZERO = (".norm1.linear.", ".norm1_context.linear.", ".norm.linear.", ".norm_out.linear.")
"""Modulation of the blocks and gates of the refiner: each block begins as the identity."""
ZERO_AT_TOP = ("norm_out.linear.", "proj_out.")
UNUSED = "time_text_embed.guidance_embedder."
"""Without distillation guidance tells nothing. Its embedder begins silent and should stay so (trains_from_scratch):
trained at one constant it would answer with noise to any other, and 10 is 9984 in bf16."""


@torch.no_grad()
def initialise(model: FramePackTransformer, seed: int = 0) -> None:
    """Fills every parameter; the values depend on seed and names' order alone, not on the device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(_initial(name, parameter, generator))
    weights = model.state_dict()
    fine = weights["x_embedder.proj.weight"]  # [D, C, 1, 2, 2]
    for name, rate in (("proj", 1), ("proj_2x", 2), ("proj_4x", 4)):
        weights[f"clean_x_embedder.{name}.weight"].copy_(fine.repeat(1, 1, rate, rate, rate) / rate**3)


def trains_from_scratch(name: str) -> bool:
    """Which parameters to train after initialise: all but the guidance embedder."""
    return not name.startswith(UNUSED)


def _initial(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith(".bias") or name.startswith(ZERO_AT_TOP) or any(part in name for part in ZERO):
        return torch.zeros(parameter.shape)
    if name.startswith(UNUSED + "linear_2."):
        return torch.zeros(parameter.shape)
    if parameter.ndim == 1:
        return torch.ones(parameter.shape)
    rows, columns = parameter.shape[0], math.prod(parameter.shape[1:])
    bound = math.sqrt(6 / (rows + columns))
    return (torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound
