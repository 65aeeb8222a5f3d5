"""Measures what a host's coding of films in pieces does to the demo VAE's latents, on the CPU.

    COMFYUI_PATH=/path/to/ComfyUI .venv/bin/python tools/measure_vae.py

docs/numerics.md quotes the output.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from host_attach import ROOT, attach_host

FRAMES = 37  # of the film: a section and the frame before it
SIZE = 128


def main() -> None:
    attach_host(Path(os.environ.get("COMFYUI_PATH") or sys.exit("name a ComfyUI folder in COMFYUI_PATH")), cpu=True)
    print(f"torch {torch.__version__}, ComfyUI {importlib.import_module('comfyui_version').__version__}, CPU")
    load_vae = pack("framepack_core.comfy_host.checkpoint_set").load_vae
    host, one_go = (load_vae(ROOT / "demo_checkpoint" / "vae.safetensors") for _ in range(2))
    pack("framepack_core.training.autoencoder").code_in_one_go(one_go.first_stage_model)
    with torch.inference_mode():
        noise = torch.rand(17, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
        frames = film()
        delayed = torch.cat([frames[:1].expand(3, -1, -1, -1), frames[:-3]])
        for name, coded, compared in (
            ("one frame, against one go", frames[:1], frames[:1]),
            ("17 random frames, against one go", noise, noise),
            ("moving film, against one go", frames, frames),
            ("moving film, against one go three frames later", frames, delayed),
        ):
            print(f"host's latents of {name}: {differences(host.encode(coded), one_go.encode(compared))}")
        latents, expected = host.encode(frames), one_go.encode(frames)
        print(f"moving film, coded and decoded by the host: {psnr(host.decode(latents), frames):.1f} dB")
        print(f"moving film, coded in one go, decoded by the host: {psnr(host.decode(expected), frames):.1f} dB")


def pack(name: str) -> Any:
    return importlib.import_module(f"framepack_pack.{name}")


def film() -> Tensor:
    """The start of a held-out film, [F, H, W, 3] of 0..1."""
    scenes = pack("tools.demo_world.sampling").random_scenes(1, 4, torch.Generator().manual_seed(9), for_tests=True)
    return pack("tools.demo_world.render").render(scenes, range(FRAMES), SIZE, SIZE)[0]


def differences(got: Tensor, expected: Tensor) -> str:
    """Relative L2 of every latent [1, 16, T, h, w] of a film."""
    pairs = zip(got.unbind(2), expected.unbind(2), strict=True)
    return " ".join(f"{float((mine - other).norm() / other.norm()):.2f}" for mine, other in pairs)


def psnr(got: Tensor, frames: Tensor) -> float:
    """Decibels of a film [1, F, H, W, 3] of 0..1."""
    return float(-10 * torch.log10((got - frames).square().mean()))


if __name__ == "__main__":
    main()
