"""Combining the two predictions of real classifier-free guidance."""

from collections.abc import Callable

from torch import Tensor


def rescaled_guidance(rescale: float) -> Callable[[dict], Tensor]:
    """CFG whose result is brought towards the spread of the positive prediction by `rescale` (0..1).

    Source: FP k_diffusion/wrapper.py rescale_noise_cfg, after Lin et al. (arXiv 2305.08891) 3.4. The returned
    function takes {"cond", "uncond", "cond_scale"}, predictions [B, ...] up to a common factor, as the host's
    cfg functions do.
    """

    def combine(args: dict) -> Tensor:
        positive, negative = args["cond"], args["uncond"]
        guided = negative + args["cond_scale"] * (positive - negative)
        axes = list(range(1, guided.ndim))
        spread = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return rescale * (guided * spread) + (1.0 - rescale) * guided

    return combine
