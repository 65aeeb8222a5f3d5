"""Training the small video autoencoder: initialisation, loss and the scale of its latents.

The module is the host's AutoencoderKL of HunyuanVideo's kind (encoder, quant_conv, post_quant_conv, decoder), given
by the caller: this file knows its parts by name and imports no host. Letters: B batch,
F frames, H W pixels, T h w latents.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..constants import LATENT_SCALE

BRANCH_GAIN = 0.3  # of a residual branch's last convolution
TAP_NOISE = 0.3  # beside the identity of a convolution that should pass its input on
POSTERIOR_BIAS = -6.0  # log-variance at the start: nearly deterministic
KL_WEIGHT = 2e-4


class Coded(NamedTuple):
    """A reconstruction and the posterior it came from."""

    frames: Tensor  # [B, 3, F, H, W], -1..1
    mean: Tensor  # [B, 16, T, h, w]
    log_variance: Tensor


@torch.no_grad()
def initialise_autoencoder(model: Any, generator: torch.Generator) -> None:
    """Weights that let the picture through from the first step; biases and norms at their neutral values."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            _initialise(name, parameter, generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    channels = model.quant_conv.bias.shape[0] // 2
    model.quant_conv.bias[channels:] = POSTERIOR_BIAS


def code(model: Any, frames: Tensor, generator: torch.Generator | None = None) -> Coded:
    """Encode and decode frames [B, 3, F, H, W] in one go; the posterior is sampled when a generator is given."""
    code_in_one_go(model)
    mean, log_variance = model.quant_conv(model.encoder(frames)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30.0, 20.0)
    latents = mean
    if generator is not None:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        latents = mean + (0.5 * log_variance).exp() * noise
    return Coded(model.decoder(model.post_quant_conv(latents)), mean, log_variance)


def code_in_one_go(model: Any) -> None:
    """Keep newer hosts from coding in pieces, in which latents of films see frames too early (docs/numerics.md)."""
    for part in (model.encoder, model.decoder):
        if hasattr(part, "carried"):
            part.carried = False


def coding_loss(coded: Coded, frames: Tensor, starts_film: Tensor) -> Tensor:
    """L1 + L2 + KL. starts_film [B]: elsewhere a window's first frame is left out, as the cross-fade drops it."""
    weight = torch.ones(frames.shape[0], 1, frames.shape[2], 1, 1, device=frames.device)
    weight[:, :, 0] = starts_film.to(weight).view(-1, 1, 1, 1)
    weight = weight / weight.mean()
    error = coded.frames.float() - frames.float()
    pixels = (weight * (error.abs() + error.square())).mean()
    mean, log_variance = coded.mean.float(), coded.log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    return pixels + KL_WEIGHT * divergence


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Decibels per sample between pictures or films of values -1..1, [B, ...] -> [B]."""
    error = (first.float().clamp(-1, 1) - second.float().clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / error)


@torch.no_grad()
def scale_latents(model: Any, deviation: float) -> None:
    """Fold a factor into the 1x1 convolutions around the latents, so that LATENT_SCALE brings them to deviation 1.

    deviation is that of the latents before. Hosts multiply by HunyuanVideo's factor whatever the VAE is.
    """
    factor = 1.0 / (LATENT_SCALE * deviation)
    channels = model.quant_conv.bias.shape[0] // 2
    model.quant_conv.weight[:channels] *= factor
    model.quant_conv.bias[:channels] *= factor
    model.quant_conv.bias[channels:] += 2 * torch.log(torch.tensor(factor)).item()
    model.post_quant_conv.weight /= factor


def _initialise(name: str, weight: Tensor, generator: torch.Generator) -> None:
    fan_in = weight[0].numel()
    noise = torch.randn(weight.shape, generator=generator, device=generator.device) / fan_in**0.5
    noise = noise.to(weight)
    if "conv2." in name or "proj_out" in name:
        weight.copy_(BRANCH_GAIN * noise)
    elif any(part in name for part in ("conv_in", "shortcut", "sample.")):
        weight.copy_(TAP_NOISE * noise)
        taps = torch.arange(weight.shape[0], device=weight.device)
        centre = tuple(size // 2 for size in weight.shape[3:])
        # the last tap in time is the frame itself: convolutions are causal
        weight[(taps, taps % weight.shape[1], weight.shape[2] - 1, *centre)] += 1.0
    else:
        weight.copy_(noise)
