"""UniPC for flow matching, a multistep predictor-corrector of order up to 3.

Written from Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models" (arXiv 2302.04867), data prediction, with the choices of FramePack's sampler
(FP k_diffusion/uni_pc_fm.py, by its behaviour): lambda = -ln(sigma); the first step only evaluates; the
corrector is skipped nowhere; sigma 0 is never evaluated; what is returned is the last denoised, not the
last state.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

MAX_ORDER = 3

Solver = Literal["bh1", "bh2"]
"""Which B(h) the paper's section 3.1 offers: h (bh1) or exp(h) - 1 (bh2), with h negative here."""


def sample_flow_unipc(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: bool | None = None,  # noqa: ARG001  # part of k-diffusion's signature
    solver: Solver = "bh1",
) -> Tensor:
    """Integrate from sigmas[0] to sigmas[-2] and return the denoised latents of the last evaluation.

    The signature is k-diffusion's: model(x, sigma [B], **extra_args) -> denoised, callback({x, i, sigma,
    sigma_hat, denoised}) after each of the len(sigmas) - 1 evaluations. disable is accepted and unused:
    progress belongs to the callback. x [B, ...] is float32.
    """
    extra_args = extra_args or {}
    levels = [float(sigma) for sigma in sigmas[:-1]]
    if not levels:
        return x
    past: list[tuple[float, Tensor]] = []  # (sigma, denoised), newest last
    for i, sigma in enumerate(levels):
        order = min(i, MAX_ORDER, max(len(levels) - 1, 1))
        step = _Step(past[-order:], sigma, solver) if order else None
        x_in = step.predict(x) if step else x
        denoised = model(x_in, x.new_full((x.shape[0],), sigma), **extra_args)
        if step:
            x = step.correct(x, denoised)
        past = [*past[-(MAX_ORDER - 1) :], (sigma, denoised)]
        if callback is not None:
            callback({"x": x_in, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
    return past[-1][1]


class _Step:
    """One update from the newest known point to sigma, of the order that the known points allow."""

    def __init__(self, past: list[tuple[float, Tensor]], sigma: float, solver: Solver) -> None:
        newest_sigma, self.newest = past[-1]
        h = math.log(sigma / newest_sigma)  # -(lambda_t - lambda_s), negative
        self.ratio = sigma / newest_sigma
        self.phi1 = math.expm1(h)
        self.base = h if solver == "bh1" else self.phi1
        older = past[-2::-1]
        self.places = [math.log(newest_sigma / s) / -h for s, _ in older] + [1.0]  # r_k, the last is the new point
        self.slopes = [(m - self.newest) / r for (_, m), r in zip(older, self.places, strict=False)]
        self.order = len(past)
        self.moments = self._moments(h)

    def predict(self, x: Tensor) -> Tensor:
        """The state at sigma, extrapolated (UniP)."""
        weights = [0.5] if self.order == 2 else self._solve(self.order - 1)
        return self._advance(x, weights, self.slopes)

    def correct(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The state at sigma once its denoised is known (UniC)."""
        weights = [0.5] if self.order == 1 else self._solve(self.order)
        return self._advance(x, weights, [*self.slopes, denoised - self.newest])

    def _advance(self, x: Tensor, weights: list[float], slopes: list[Tensor]) -> Tensor:
        out = self.ratio * x - self.phi1 * self.newest
        for weight, slope in zip(weights, slopes, strict=True):
            out = out - (self.base * weight) * slope
        return out

    def _moments(self, h: float) -> list[float]:
        """b_k of the paper's equation for the weights: k! phi_{k+1}(h) / B(h), k = 1..order."""
        moments = []
        phi, factorial = self.phi1 / h - 1.0, 1.0
        for k in range(1, self.order + 1):
            moments.append(phi * factorial / self.base)
            factorial *= k + 1
            phi = phi / h - 1.0 / factorial
        return moments

    def _solve(self, size: int) -> list[float]:
        """Weights that match the first moments: sum_j w_j r_j^k = b_k for k = 0..size-1."""
        if size == 0:
            return []
        places = torch.tensor(self.places, dtype=torch.float64)
        # the predictor knows the older points only, the corrector the new one too
        places = places[:size] if size == self.order else places[: self.order - 1]
        powers = places.unsqueeze(0) ** torch.arange(size, dtype=torch.float64).unsqueeze(1)  # [k, j]
        right = torch.tensor(self.moments[:size], dtype=torch.float64)
        return torch.linalg.solve(powers, right).tolist()
