"""The demo VAE: the host's AutoencoderKL, small, trained on windows of demo-world films."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...framepack_core.affine_norm import AFFINE, use_affine_norms
from ...framepack_core.atomic_files import write_atomically
from ...framepack_core.model.config import METADATA_KEY
from ...framepack_core.training.autoencoder import (
    code,
    coding_loss,
    initialise_autoencoder,
    psnr,
    scale_latents,
)
from ...framepack_core.training.loop import TrainingRun, every, new_run, train
from ...framepack_core.training.optimizer import Rates, Schedule
from ...framepack_core.training.run_files import load_run, save_run
from ..demo_world.motion import film_states
from ..demo_world.render import render
from ..demo_world.sampling import random_scenes
from ..demo_world.scene import Scenes

FILM_SECTIONS = 4
WINDOW_FRAMES = 17  # 5 latents
WHOLE_FROM = 0.75  # of all steps: before it quarters of the picture around the object, for a quarter of the time
WIDTH = 32  # the host builds norms of 32 groups, whatever replaces them


def train_vae(arguments: argparse.Namespace) -> None:
    """The stage `vae`: goes on from the run in --out if there is one, then writes and measures the checkpoint."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = new_vae(device, arguments.seed)
    run = new_run(
        model,
        arguments.seed,
        rates=Rates(muon=0.005, adamw=5e-4),
        uses_muon=lambda name, parameter: parameter.ndim > 1 and "conv_in" not in name and "conv_out" not in name,
    )
    schedule = Schedule(arguments.steps, warm_up=100, decay=0.7)
    if device == "cuda":
        model.encoder.compile(dynamic=False)
        model.decoder.compile(dynamic=False)
    run_file = arguments.out / "vae_run.safetensors"
    if run_file.exists():
        load_run(run, run_file)

    def batches() -> list[tuple[Tensor, Tensor]]:
        is_whole = run.step >= WHOLE_FROM * arguments.steps
        batch = max(arguments.batch // 2, 1) if is_whole else arguments.batch
        return [windows(batch, is_whole, run.generators, device, arguments.size)]

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        frames, starts = batch
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            coded = code(model, frames, run.generators.noise)
        return coding_loss(coded, frames, starts)

    def tell(run: TrainingRun, value: Tensor) -> None:
        print(f"step {run.step}, {run.seconds:.0f} s, loss {value.item():.4f}", flush=True)

    train(run, batches, loss, schedule, seconds=arguments.seconds, callbacks=[every(200, tell)])
    save_run(run, run_file)
    with run.average.applied(run.parameters), torch.no_grad():
        print(json.dumps({"step": run.step, **measure_vae(model, device, arguments.size, arguments.films)}), flush=True)
        frames, _ = windows(arguments.films, True, run.generators, device, arguments.size)
        save_vae(model, arguments.out / "vae.safetensors", frames)


def new_vae(device: str, seed: int) -> Any:
    """The host's class, with norms without statistics and weights that let pictures through."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    from ...framepack_core.comfy_host.checkpoint_set import vae_config

    config = vae_config(WIDTH, [1, 1, 1, 2], 1)
    model = AutoencoderKL(ddconfig=config, embed_dim=config["z_channels"]).to(device)
    use_affine_norms(model)
    initialise_autoencoder(model, torch.Generator(device).manual_seed(seed))
    return model.requires_grad_(True)


def windows(batch: int, is_whole: bool, generators: Any, device: str, size: int) -> tuple[Tensor, Tensor]:
    """Pieces of films, [B, 3, 17, H, W] in -1..1, around the object unless whole; and which start a film [B]."""
    scenes = random_scenes(batch, FILM_SECTIONS, generators.choices, device=device)
    last = 36 * FILM_SECTIONS + 1 - WINDOW_FRAMES
    begin = int(torch.randint(last + 1, (), generator=generators.choices))
    starts = int(torch.randint(4, (), generator=generators.choices)) == 0
    begin = 0 if starts else begin
    frames = render(scenes, list(range(begin, begin + WINDOW_FRAMES)), size, size).movedim(-1, 1) * 2 - 1
    if not is_whole:
        frames = _around_object(frames, scenes, begin + WINDOW_FRAMES // 2, generators.choices)
    return frames.contiguous(), torch.full((batch,), begin == 0, device=device)


def _around_object(frames: Tensor, scenes: Scenes, middle: int, generator: torch.Generator) -> Tensor:
    """Half the height and width of the frames, near where the object is in the frame `middle`."""
    size = frames.shape[-1]
    half = size // 2
    place = film_states(scenes, [middle]).position[:, 0] % 1.0  # [B, 2] x, y
    jitter = (torch.rand(len(scenes), 2, generator=generator) - 0.5).to(place) * half
    corner = (place * size - half / 2 + jitter).round().long().clamp(0, size - half)  # [B, 2]
    span = torch.arange(half, device=frames.device)
    columns, rows = ((corner[:, axis, None] + span) for axis in range(2))  # [B, half]
    films = torch.arange(len(scenes), device=frames.device)
    picked = frames[films[:, None, None], :, :, rows[:, :, None], columns[:, None, :]]  # [B, half, half, 3, F]
    return picked.permute(0, 3, 4, 1, 2)


def save_vae(model: Any, path: Path, frames: Tensor) -> None:
    """The checkpoint: bf16 weights, and latents of these frames that have the scale hosts expect."""
    scale_latents(model, float(code(model, frames).mean.std()))
    tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, tensors, {METADATA_KEY: json.dumps({"norms": AFFINE})})


@torch.no_grad()
def measure_vae(model: Any, device: str, size: int, films: int) -> dict[str, float]:
    """PSNR on held-out films: whole windows of a film's start and of its middle."""
    scenes = random_scenes(films, FILM_SECTIONS, torch.Generator().manual_seed(9), for_tests=True, device=device)
    out = {}
    for begin, drop in ((0, 0), (50, 1)):
        frames = render(scenes, list(range(begin, begin + 69)), size, size).movedim(-1, 1) * 2 - 1
        values = psnr(code(model, frames).frames[:, :, drop:], frames[:, :, drop:])
        out |= {f"psnr from {begin}": float(values.mean()), f"worst from {begin}": float(values.min())}
    return out
