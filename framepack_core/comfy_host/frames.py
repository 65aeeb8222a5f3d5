"""Images to start latents, through the host's VAE and vision encoder."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..constants import FRAMES_PER_LATENT, LATENT_CHANNELS, PIXELS_PER_LATENT


class StartImage(NamedTuple):
    """A start image in the forms that the model takes."""

    image: Tensor  # [B, H, W, 3], values 0..1
    latent: Tensor  # [B, 16, 1, h, w] unscaled
    vision: Any  # CLIP_VISION_OUTPUT or None


def fit_image(image: Tensor, height: int, width: int) -> Tensor:
    """[B, h, w, C] -> [B, height, width, 3]: Lanczos to cover the size, then the centre.

    Source: FP utils.py resize_and_center_crop. An image of that size already is not touched.
    """
    image = image[..., :3]
    if image.shape[1:3] == (height, width):
        return image
    return torch.stack([_fit_one(sample, height, width) for sample in image])


def encode_start(image: Tensor, vae: Any, clip_vision: Any, height: int, width: int) -> StartImage:
    """Fit an image to a size, encode it, and look at it. Raises ValueError for a VAE of another family."""
    check_vae(vae)
    image = fit_image(image, height, width)
    # one by one: a video VAE takes a batch of images for frames
    latent = torch.cat([vae.encode(sample.unsqueeze(0)) for sample in image])  # [B, 16, 1, h, w]
    # squashed to the encoder's square as the original does, not cropped
    vision = None if clip_vision is None else clip_vision.encode_image(image, crop=False)
    return StartImage(image, latent, vision)


def check_vae(vae: Any) -> None:
    """Raises ValueError unless the VAE makes HunyuanVideo's latents: 16 channels, 8x space, 4x time."""
    expected = (LATENT_CHANNELS, 3, PIXELS_PER_LATENT, FRAMES_PER_LATENT)
    temporal = vae.temporal_compression_decode()
    got = (vae.latent_channels, vae.latent_dim, vae.spacial_compression_decode(), temporal)
    family = type(vae.first_stage_model).__name__
    if got != expected or "wan" in type(vae.first_stage_model).__module__:
        raise ValueError(
            f"This VAE ({family}) has {got[0]} channels, {got[1]} dimensions and compresses {got[2]}x in space and "
            f"{got[3]}x in time; FramePack needs HunyuanVideo's ({expected[0]}, {expected[1]}, {expected[2]}x, "
            f"{expected[3]}x): load hunyuan_video_vae_bf16.safetensors."
        )


def _fit_one(sample: Tensor, height: int, width: int) -> Tensor:
    pixels = (sample.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels)
    scale = max(width / picture.width, height / picture.height)
    wide, high = round(picture.width * scale), round(picture.height * scale)
    left, top = (wide - width) / 2, (high - height) / 2
    picture = picture.resize((wide, high), Image.Resampling.LANCZOS).crop(
        (round(left), round(top), round(left) + width, round(top) + height)
    )
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
