"""The stage `transformer` of scripts/train_demo.py: films, training, checkpoint and figures in one call.

The folder --out holds the other parts of the checkpoint (vae, clip_l, llama, clip_vision .safetensors). This adds
transformer.safetensors, transformer_run.safetensors (to go on from), films.safetensors (not to render again, some GB)
and a contact sheet of every kind of film. With the same --out the next call goes on.
"""

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ...framepack_core.comfy_host.checkpoint_set import load_clip_vision, load_text_encoders, load_vae
from ...framepack_core.model.transformer import FramePackTransformer
from ...framepack_core.training.optimizer import Rates
from .dataset import Encoders, FilmSettings, cached_dataset
from .films import FilmCoder
from .measure import LEVELS, HeldOut, Sampling, held_out_films, measure, validation_loss
from .text import CaptionEncoder
from .transformer import Training, config_for, save_transformer, start_training, train_transformer, trained_model

_TESTED_SECTIONS = 4


def run_stage(arguments: argparse.Namespace) -> None:
    """One call. Prints progress and, at the end, figures as one line of JSON."""
    logging.getLogger().setLevel(logging.WARNING)
    begun = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out: Path = arguments.out

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - begun:.0f} s] {text}", flush=True)

    encoders = load_encoders(out, device)
    settings = FilmSettings(
        arguments.films, tuple(arguments.sections), size=arguments.size, seed=arguments.seed, spins=arguments.spins
    )
    dataset = cached_dataset(settings, encoders, out, out / "films.safetensors")
    tell(f"{settings.films} films, {len(dataset.prompts.features)} prompts")
    training = Training(
        arguments.steps,
        arguments.batch,
        arguments.batches,
        arguments.seed,
        text_alone=arguments.text_alone,
        rates=replace(Rates(), muon=arguments.muon, adamw=arguments.adamw),
        decay=arguments.decay,
        compiles=device.type == "cuda" and not arguments.no_compile,
        start_from=arguments.start_from,
    )
    config = config_for(dataset)
    run_file = out / "transformer_run.safetensors"
    run = start_training(config, training, device, run_file)
    tell(f"{sum(value.numel() for value in run.model.parameters())} parameters, at step {run.step}")
    is_done = train_transformer(run, dataset, training, arguments.seconds, run_file, tell)
    save_transformer(run, config, out / "transformer.safetensors")
    tell(f"at step {run.step} of {training.steps}{', done' if is_done else ''}; measuring")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    films = held_out_films(arguments.tested, _TESTED_SECTIONS, encoders, arguments.size)
    figures = report(trained_model(run, config, dtype), films, encoders, Sampling(arguments.sampling_steps), out)
    print(json.dumps({"step": run.step, "seconds": round(run.seconds), **figures}), flush=True)
    tell("finished")


def load_encoders(folder: Path, device: torch.device) -> Encoders:
    """The folder's VAE and encoders, through the pack's loaders. Raises FileNotFoundError naming a missing file."""
    coder = FilmCoder(
        load_vae(folder / "vae.safetensors"), load_clip_vision(folder / "clip_vision.safetensors"), device
    )
    clip = load_text_encoders(folder / "clip_l.safetensors", folder / "llama.safetensors")
    return Encoders(coder, CaptionEncoder(clip, device))


def report(
    model: FramePackTransformer, films: HeldOut, encoders: Encoders, sampling: Sampling, folder: Path
) -> dict[str, object]:
    """Figures, rounded; the contact sheets go into the folder."""
    dtype = next(model.parameters()).dtype
    losses = validation_loss(model, films, dtype)
    figures, sheets = measure(model, films, encoders, replace(sampling, dtype=dtype))
    for name, sheet in sheets.items():
        Image.fromarray(sheet.numpy()).save(folder / f"transformer_{name}.png")
    return {
        "loss at": LEVELS,
        "loss": {name: [round(value, 5) for value in values] for name, values in losses.items()},
        **{name: {key: round(value, 4) for key, value in part.items()} for name, part in figures.items()},
    }
