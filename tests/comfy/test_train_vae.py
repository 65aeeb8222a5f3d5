"""The VAE stage of scripts/train_demo.py on the host's class: learn, resume, save, load."""

import sys
from pathlib import Path

import pytest
import torch
from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_vae
from framepack_pack.framepack_core.constants import LATENT_SCALE
from framepack_pack.framepack_core.training import autoencoder
from framepack_pack.scripts import train_demo
from framepack_pack.tools.demo_training import vae as vae_stage

FRAMES = 5


@pytest.fixture(autouse=True)
def inference_mode():
    """Training needs gradients, so the suite's inference mode is off here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions crawl with two on a busy machine
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return vae_stage.new_vae("cpu", 0)


def some_frames():
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(2, 3, FRAMES, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, scale_factor=(1, 8, 8), mode="trilinear")


def test_the_picture_goes_through_from_the_start(model):
    with torch.no_grad():
        coded = autoencoder.code(model, some_frames())
    assert coded.frames.shape == (2, 3, FRAMES, 32, 32)
    assert coded.mean.shape == (2, 16, 2, 4, 4)
    assert coded.frames.std() > 0.05
    assert float(coded.log_variance.mean()) < -3, "nearly deterministic"


def test_it_learns(model):
    frames, starts = some_frames(), torch.tensor([True, False])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(12):
        loss = autoencoder.coding_loss(autoencoder.code(model, frames, generator), frames, starts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_only_a_film_s_first_window_counts_its_first_frame():
    frames = torch.zeros(2, 3, FRAMES, 8, 8)
    wrong = frames.clone()
    wrong[:, :, 0] = 1.0
    silent = torch.zeros(2, 16, 2, 1, 1)
    coded = autoencoder.Coded(wrong, silent, silent)
    assert autoencoder.coding_loss(coded, frames, torch.tensor([False, False])) == 0
    assert autoencoder.coding_loss(coded, frames, torch.tensor([True, False])) > 0


def test_psnr_of_a_known_error():
    decibels = autoencoder.psnr(torch.zeros(2, 4), torch.full((2, 4), 0.2))
    torch.testing.assert_close(decibels, torch.full((2,), 20.0))


def test_saved_checkpoint_decodes_the_same_through_the_vae_socket(model, tmp_path):
    frames = some_frames()
    with torch.inference_mode():
        vae_stage.save_vae(model, tmp_path / "vae.safetensors", frames)
        vae = load_vae(tmp_path / "vae.safetensors")
        expected = autoencoder.code(model, frames)
        assert abs(float(expected.mean.std()) * LATENT_SCALE - 1) < 1e-3
        decoded = vae.decode(expected.mean)  # [B, F, H, W, 3] in 0..1
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in vae.first_stage_model.modules())
    wanted = (expected.frames.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    assert float((decoded - wanted).abs().mean()) < 0.01, "bf16 weights, otherwise the same"


def test_the_command_trains_saves_and_goes_on(tmp_path, monkeypatch, capsys):
    host = Path(sys.modules["comfy.sd"].__file__).parents[1]
    for steps in (1, 2):
        arguments = ["train_demo", "vae", "--host", str(host), "--out", str(tmp_path), "--batch", "1", "--films", "1"]
        monkeypatch.setattr(sys, "argv", [*arguments, "--size", "32", "--steps", str(steps)])
        train_demo.main()
        assert f'"step": {steps}' in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"vae.safetensors", "vae_run.safetensors"}
