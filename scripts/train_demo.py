"""Trains the demo checkpoint: `python3 scripts/train_demo.py STAGE --host ComfyUI --out FOLDER`.

Stage vae: the autoencoder, as the host's own class, on films of tools/demo_world. Stage transformer: on films and
captions as the VAE and the encoders in --out give them. A call ends after --seconds; the next one with the same --out
goes on. Each writes the run (vae_run.safetensors) and the checkpoint as it is (vae.safetensors), and prints figures on
held-out films. Needs an interpreter with ComfyUI's requirements, and a GPU to be of use.
"""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]

SIZE = 128  # pixels
FILM_SECTIONS = 4
WINDOW_FRAMES = 17  # 5 latents
VAE_CONFIG = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
    "conv3d": True,
    "time_compress": 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    vae, transformer = (stages.add_parser(name) for name in ("vae", "transformer"))
    for stage in (vae, transformer):
        stage.add_argument("--host", type=Path, required=True, help="ComfyUI folder, for its model classes")
        stage.add_argument("--out", type=Path, required=True, help="folder of the runs and of the checkpoint's files")
        stage.add_argument("--seconds", type=float, default=400.0, help="of training in this call")
        stage.add_argument("--size", type=int, default=SIZE, help="side of the films in pixels")
        stage.add_argument("--seed", type=int, default=0)
    add_vae_arguments(vae)
    add_transformer_arguments(transformer)
    arguments = parser.parse_args()
    attach_host(arguments.host)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "vae":
        train_vae(arguments)
    else:
        from framepack_pack.tools.demo_training.transformer_stage import run_stage

        run_stage(arguments)


def add_vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=6000, help="of the whole training")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--films", type=int, default=16, help="held-out films that are measured")


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=14000, help="of the whole training; the last 40 %% slow down")
    parser.add_argument("--batch", type=int, default=64, help="samples of each batch of a step")
    parser.add_argument("--batches", type=int, default=4, help="of a step, in turn for backward and for F1")
    parser.add_argument("--films", type=int, default=6000, help="clips to train on")
    parser.add_argument("--sections", type=int, nargs="+", default=[4, 4, 8], help="of the clips, in equal shares")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the blocks' matrices")
    parser.add_argument("--adamw", type=float, default=1e-3, help="learning rate of everything else")
    parser.add_argument("--tested", type=int, default=64, help="held-out films that are measured")
    parser.add_argument("--sampling-steps", type=int, default=25, help="of the measured films")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which a CPU never uses")


def attach_host(host: Path) -> None:
    """Make ComfyUI importable, and the pack under an alias (our folder `nodes` would hide ComfyUI's module)."""
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()  # the host does not see for itself
    sys.argv = arguments
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack


def new_vae(device: str, seed: int) -> Any:
    """The host's class, small, with a few norm groups and weights that let pictures through."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from framepack_pack.framepack_core.comfy_host.checkpoint_set import set_norm_groups
    from framepack_pack.framepack_core.training.autoencoder import NORM_GROUPS, initialise_autoencoder

    model = AutoencoderKL(ddconfig=VAE_CONFIG, embed_dim=VAE_CONFIG["z_channels"]).to(device)
    set_norm_groups(model, NORM_GROUPS)
    initialise_autoencoder(model, torch.Generator(device).manual_seed(seed))
    return model.requires_grad_(True)


def windows(batch: int, whole: bool, generators: Any, device: str, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pieces of films, [B, 3, 17, H, W] in -1..1, a quarter of the picture unless whole; and which start a film [B]."""
    from framepack_pack.tools.demo_world.render import render
    from framepack_pack.tools.demo_world.sampling import random_scenes

    scenes = random_scenes(batch, FILM_SECTIONS, generators.choices, device=device)
    last = 36 * FILM_SECTIONS + 1 - WINDOW_FRAMES
    begin = int(torch.randint(last + 1, (), generator=generators.choices))
    starts = int(torch.randint(4, (), generator=generators.choices)) == 0
    begin = 0 if starts else begin
    frames = render(scenes, list(range(begin, begin + WINDOW_FRAMES)), size, size).movedim(-1, 1) * 2 - 1
    if not whole:
        top, left = (int(torch.randint(size // 2 + 1, (), generator=generators.choices)) for _ in range(2))
        frames = frames[..., top : top + size // 2, left : left + size // 2]
    return frames.contiguous(), torch.full((batch,), begin == 0, device=device)


def train_vae(arguments: argparse.Namespace) -> None:
    from framepack_pack.framepack_core.training import autoencoder
    from framepack_pack.framepack_core.training.loop import every, new_run, train
    from framepack_pack.framepack_core.training.optimizer import Rates, Schedule
    from framepack_pack.framepack_core.training.run_files import load_run, save_run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = new_vae(device, arguments.seed)
    run = new_run(
        model,
        arguments.seed,
        rates=Rates(muon=0.005, adamw=5e-4),
        uses_muon=lambda name, parameter: parameter.ndim > 1 and "conv_in" not in name and "conv_out" not in name,
    )
    schedule = Schedule(arguments.steps, warm_up=100, decay=0.7)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [windows(arguments.batch, run.step > arguments.steps // 2, run.generators, device, arguments.size)]

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        frames, starts = batch
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            coded = autoencoder.code(model, frames, run.step % 2 == 0, run.generators.noise)
        return autoencoder.coding_loss(coded, frames, starts)

    def tell(run: Any, value: Tensor) -> None:
        print(f"step {run.step}, {run.seconds:.0f} s, loss {value.item():.4f}", flush=True)

    run_file = arguments.out / "vae_run.safetensors"
    if run_file.exists():
        load_run(run, run_file)
    train(run, batches, loss, schedule, seconds=arguments.seconds, callbacks=[every(200, tell)])
    save_run(run, run_file)
    with run.average.applied(run.parameters), torch.no_grad():
        print(json.dumps({"step": run.step, **measure_vae(model, device, arguments.size, arguments.films)}))
        save_vae(
            model,
            arguments.out / "vae.safetensors",
            windows(arguments.films, True, run.generators, device, arguments.size)[0],
        )


def save_vae(model: Any, path: Path, frames: Tensor) -> None:
    """The checkpoint: bf16 weights, and latents of these frames that have the scale hosts expect."""
    from framepack_pack.framepack_core.atomic_files import write_atomically
    from framepack_pack.framepack_core.model.config import METADATA_KEY
    from framepack_pack.framepack_core.training.autoencoder import NORM_GROUPS, code, scale_latents

    scale_latents(model, float(code(model, frames, True).mean.std()))
    tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, tensors, {METADATA_KEY: json.dumps({"norm_groups": NORM_GROUPS})})


@torch.no_grad()
def measure_vae(model: Any, device: str, size: int, films: int) -> dict[str, float]:
    """PSNR on held-out films: whole windows of a film's start and of its middle, both ways of coding."""
    from framepack_pack.framepack_core.training.autoencoder import code, psnr
    from framepack_pack.tools.demo_world.render import render
    from framepack_pack.tools.demo_world.sampling import random_scenes

    scenes = random_scenes(films, FILM_SECTIONS, torch.Generator().manual_seed(9), for_tests=True, device=device)
    out = {}
    for begin, drop in ((0, 0), (50, 1)):
        frames = render(scenes, list(range(begin, begin + 69)), size, size).movedim(-1, 1) * 2 - 1
        for is_rolled in (True, False):
            coded = code(model, frames, is_rolled)
            values = psnr(coded.frames[:, :, drop:], frames[:, :, drop:])
            out[f"psnr from {begin} {'rolled' if is_rolled else 'whole'}"] = float(values.mean())
            out[f"worst from {begin} {'rolled' if is_rolled else 'whole'}"] = float(values.min())
    return out


if __name__ == "__main__":
    main()
