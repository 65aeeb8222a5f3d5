"""Images in; which VAEs are taken."""

import numpy as np
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.film_decoding import decode_frames
from framepack_pack.framepack_core.comfy_host.frames import check_vae, encode_start, fit_image
from framepack_pack.framepack_core.generate import generate
from framepack_pack.nodes.start_image import FramePackResolution, FramePackStartImage
from PIL import Image


def noise_film(history):
    return generate(history, lambda section, packed, noise: noise)


def test_start_image_gives_all_that_a_film_starts_with(tiny):
    image = torch.rand(2, 90, 120, 3)
    latent, vision, fitted, width, height = FramePackStartImage.execute(image, tiny.vae, 64, tiny.clip_vision).args
    assert (width, height) == FramePackResolution.execute(image, 64).args
    assert fitted.shape == (2, height, width, 3)
    assert latent["samples"].shape == (2, 16, 1, height // 8, width // 8)
    assert vision.last_hidden_state.shape == (2, 16, 36)


def test_end_images_take_the_size_of_the_start(tiny):
    start = FramePackStartImage.execute(torch.rand(1, 90, 160, 3), tiny.vae, 64).args
    end = FramePackStartImage.execute(torch.rand(1, 100, 50, 3), tiny.vae, 64, like=start[0]).args
    assert end[0]["samples"].shape == start[0]["samples"].shape
    assert end[3:] == start[3:]


def test_every_image_of_a_batch_is_a_film_of_its_own(tiny):
    image = torch.rand(2, 64, 64, 3)
    both = encode_start(image, tiny.vae, None, 64, 64).latent
    torch.testing.assert_close(both[1:], encode_start(image[1:], tiny.vae, None, 64, 64).latent)


def test_vision_sees_the_whole_image_squashed(tiny):
    image = torch.rand(1, 64, 128, 3)
    start = encode_start(image, tiny.vae, tiny.clip_vision, 64, 128)
    squashed = tiny.clip_vision.encode_image(image, crop=False).last_hidden_state
    cropped = tiny.clip_vision.encode_image(image, crop=True).last_hidden_state
    assert torch.equal(start.vision.last_hidden_state, squashed)
    assert not torch.equal(squashed, cropped)


def test_images_of_the_right_size_are_not_touched():
    image = torch.rand(1, 64, 96, 3)
    assert fit_image(image, 64, 96) is image or torch.equal(fit_image(image, 64, 96), image)
    assert fit_image(torch.rand(1, 64, 96, 4), 64, 96).shape == (1, 64, 96, 3)


@pytest.mark.parametrize(("size", "fitted"), [((100, 200), (64, 96)), ((301, 77), (96, 64)), ((33, 33), (64, 64))])
def test_fitting_is_the_originals(size, fitted):
    """FP utils.py resize_and_center_crop: Lanczos to cover, then Pillow's crop of the float box."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = fitted
    picture = Image.fromarray(pixels)
    scale = max(width / picture.width, height / picture.height)
    large = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (large.width - width) / 2, (large.height - height) / 2
    expected = np.asarray(large.crop((left, top, left + width, top + height)))
    got = fit_image(torch.from_numpy(pixels).unsqueeze(0) / 255, height, width)
    assert np.array_equal((got[0].numpy() * 255).round().astype(np.uint8), expected)


class OtherVae:
    """As much of a VAE as tells its family."""

    def __init__(self, channels=16, dimensions=3, space=8, time=4, model=None):
        self.latent_channels, self.latent_dim, self.first_stage_model = channels, dimensions, model
        self.space, self.time = space, time

    def spacial_compression_decode(self):
        return self.space

    def temporal_compression_decode(self):
        return self.time


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (OtherVae(4, 2, 8, None), "has 4 channels, 2 dimensions"),
        (OtherVae(48, 3, 16, 4), "48 channels.*16x in space"),
        (OtherVae(16, 3, 8, 4, type("WanVAE", (), {"__module__": "comfy.ldm.wan.vae"})()), "This VAE .WanVAE."),
    ],
)
def test_other_vaes_are_refused(new_film, vae, message):
    for run in (
        lambda: check_vae(vae),
        lambda: FramePackStartImage.execute(torch.rand(1, 64, 64, 3), vae, 64),
        lambda: decode_frames(vae, noise_film(new_film())),
    ):
        with pytest.raises(ValueError, match=message):
            run()
