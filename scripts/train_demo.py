"""Trains the demo checkpoint: `python3 scripts/train_demo.py STAGE --host ComfyUI --out FOLDER`.

Stage vae: the autoencoder, as the host's own class, on films of tools/demo_world. Stage encoders: clip_l, llama and
clip_vision, random weights, in seconds on a CPU. Stage transformer: on films and captions as the VAE and the encoders
in --out give them. A call trains for --seconds; the next one with the same --out goes on. Each writes the run
(vae_run.safetensors) and the checkpoint as it is (vae.safetensors), and prints figures on held-out films. Needs an
interpreter with ComfyUI's requirements, and a GPU to be of use.
"""

import argparse
from pathlib import Path

import torch
from host_attach import attach_host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    vae, encoders, transformer = (stages.add_parser(name) for name in ("vae", "encoders", "transformer"))
    for stage in (vae, encoders, transformer):
        stage.add_argument("--host", type=Path, required=True, help="ComfyUI folder, for its classes and tokenizers")
        stage.add_argument("--out", type=Path, required=True, help="folder of the runs and of the checkpoint's files")
        stage.add_argument("--seed", type=int, default=0)
    for stage in (vae, transformer):
        stage.add_argument("--seconds", type=float, default=540.0, help="of training in this call")
        stage.add_argument("--size", type=int, default=128, help="side of the films in pixels")
    add_vae_arguments(vae)
    add_transformer_arguments(transformer)
    arguments = parser.parse_args()
    attach_host(arguments.host, cpu=not torch.cuda.is_available())
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "vae":
        from framepack_pack.tools.demo_training.vae import train_vae

        train_vae(arguments)
    elif arguments.stage == "encoders":
        from framepack_pack.tools.demo_training.encoders import write_encoders

        write_encoders(arguments.out, arguments.seed)
    else:
        from framepack_pack.tools.demo_training.transformer_stage import run_stage

        run_stage(arguments)


def add_vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=8600, help="of the whole training")
    parser.add_argument("--batch", type=int, default=16, help="windows a step; half as many of whole pictures")
    parser.add_argument("--films", type=int, default=32, help="held-out films that are measured")


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=14000, help="of the whole training")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the steps in which learning slows down")
    parser.add_argument("--batch", type=int, default=384, help="samples of each batch of a step")
    parser.add_argument("--batches", type=int, default=1, help="of a step, each of the other direction than the last")
    parser.add_argument("--films", type=int, default=6000, help="clips to train on")
    parser.add_argument("--sections", type=int, nargs="+", default=[4, 4, 8], help="of the clips, in equal shares")
    parser.add_argument("--spins", type=float, default=3.0, help="how often an object spins: the hardest motion")
    parser.add_argument("--text-alone", type=float, default=0.35, help="share of batches that show only a prompt")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the blocks' matrices")
    parser.add_argument("--adamw", type=float, default=1e-3, help="learning rate of everything else")
    parser.add_argument("--tested", type=int, default=64, help="held-out films that are measured")
    parser.add_argument("--sampling-steps", type=int, default=25, help="of the measured films")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose weights a new run begins with")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which a CPU never uses")


if __name__ == "__main__":
    main()
