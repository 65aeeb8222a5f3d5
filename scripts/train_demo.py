"""Trains the demo checkpoint: `python3 scripts/train_demo.py vae --host ComfyUI --out FOLDER`.

A call ends after --seconds; the next one with the same --out goes on. Stage vae writes its run (vae_run.safetensors)
and the checkpoint as it is (vae.safetensors), and prints its PSNR on held-out films. Needs an interpreter with
ComfyUI's requirements, and a GPU to be of use.
"""

import argparse
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vae"])
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI folder, for its AutoencoderKL")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and of the checkpoint")
    parser.add_argument("--steps", type=int, default=9000, help="of the whole training")
    parser.add_argument("--seconds", type=float, default=540.0, help="of this call")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--size", type=int, default=128, help="side of the films in pixels")
    parser.add_argument("--films", type=int, default=16, help="held-out films that are measured")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    attach_host(arguments.host)
    arguments.out.mkdir(parents=True, exist_ok=True)
    from framepack_pack.tools.demo_training.vae import train_vae

    train_vae(arguments)


def attach_host(host: Path) -> None:
    """Make ComfyUI importable, and the pack under an alias (our folder `nodes` would hide ComfyUI's module)."""
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.cli_args  # noqa: F401

    sys.argv = arguments
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack


if __name__ == "__main__":
    main()
