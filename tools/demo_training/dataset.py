"""What the transformer trains on: random films of the demo world as latents, with captions in several wordings.

The whole set is kept on the accelerator, and in one file beside the run, so that a second call does not render again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ...framepack_core.atomic_files import write_atomically
from ...framepack_core.training.clips import Clips, Prompts, check_prompts, new_clips
from ..demo_world.captions import captions
from ..demo_world.sampling import random_scenes
from ..demo_world.scene import Scenes
from .films import WINDOW, EncodedFilms, FilmCoder
from .text import CaptionEncoder

METADATA_KEY = "framepack_demo_films"
ENCODERS = ("vae", "clip_l", "llama", "clip_vision")


@dataclass(frozen=True)
class FilmSettings:
    """What a set of films is made from; equal settings give equal films."""

    films: int = 6000
    sections: tuple[int, ...] = (4, 4, 8)  # of a clip; each entry gets an equal share of the films
    wordings: int = 4  # of every section's caption; half of them name shape, colour, size and background
    size: int = 128  # pixels
    seed: int = 0
    spins: float = 1.0  # how often an object spins, against once for every other motion


class Dataset(NamedTuple):
    """Clips and the prompts that they name."""

    clips: Clips
    prompts: Prompts


class Encoders(NamedTuple):
    """What turns films and captions into what the transformer sees."""

    coder: FilmCoder
    captions: CaptionEncoder


def cached_dataset(settings: FilmSettings, encoders: Encoders, folder: Path, path: Path) -> Dataset:
    """The set in the file if it was made with these settings and these encoders of the folder, else a new one."""
    made_with = {**asdict(settings), "encoders": _fingerprints(folder)}
    metadata = {METADATA_KEY: json.dumps(made_with, sort_keys=True)}
    if path.exists():
        with safe_open(path, framework="pt") as file:
            is_same = file.metadata() == metadata
        if is_same:
            return load_dataset(path, encoders.coder.device)
    dataset = make_dataset(settings, encoders)
    save_dataset(dataset, path, metadata)
    return dataset


def make_dataset(settings: FilmSettings, encoders: Encoders) -> Dataset:
    """Render, encode and describe random films, of training combinations only."""
    generator = torch.Generator().manual_seed(settings.seed)
    device = encoders.coder.device
    shares = torch.tensor_split(torch.arange(settings.films), len(settings.sections))
    scenes = [
        random_scenes(len(share), sections, generator, odds={"spins": settings.spins}, device=device)
        for share, sections in zip(shares, settings.sections, strict=True)
        if len(share)
    ]
    return encode_dataset(scenes, encoders, settings.size, settings.wordings, generator)


def encode_dataset(
    scenes: Sequence[Scenes],
    encoders: Encoders,
    size: int,
    wordings: int,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Films of several lengths as one set. Without a generator captions have the plain wording."""
    rows: dict[str, int] = {}
    texts = [_describe(films, wordings, generator, rows) for films in scenes]
    prompts = encoders.captions.encode(list(rows))
    films = [encoders.coder.encode_scenes(each, size) for each in scenes]
    clips = _clips(films, texts, prompts.empty)
    check_prompts(prompts, clips)
    return Dataset(clips, prompts)


def save_dataset(dataset: Dataset, path: Path, metadata: dict[str, str]) -> None:
    """One safetensors file."""
    tensors = {**dataset.clips._asdict(), **dataset.prompts._asdict(), "empty": torch.tensor(dataset.prompts.empty)}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, stored, metadata)


def load_dataset(path: Path, device: torch.device) -> Dataset:
    """The inverse of save_dataset; what the model reads goes to its device, what draws read stays on the CPU."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is not a mapping
    there = {name: tensors[name].to(device) for name in ("latents", "stills", "vision", "features", "pooled")}
    clips = Clips(there["latents"], there["stills"], there["vision"], tensors["texts"], tensors["sections"])
    return Dataset(clips, Prompts(there["features"], there["pooled"], tensors["lengths"], int(tensors["empty"])))


def _describe(scenes: Scenes, wordings: int, generator: torch.Generator | None, rows: dict[str, int]) -> Tensor:
    """Rows of the captions, [B, S, V]; new captions are added to `rows`."""
    table = [
        [
            [
                rows.setdefault(text, len(rows))
                for text in captions(scenes, section, generator, full=2 * wording < wordings)
            ]
            for wording in range(wordings)
        ]
        for section in range(scenes.sections)
    ]
    return torch.tensor(table).permute(2, 0, 1)  # from [S, V, B]


def _clips(films: Sequence[EncodedFilms], texts: Sequence[Tensor], empty: int) -> Clips:
    """Shorter films are filled up with zeros, their texts with the empty prompt."""
    most = max(text.shape[1] for text in texts)

    def filled(tensors: Sequence[Tensor], axis: int, size: int, value: int = 0) -> Tensor:
        out = []
        for tensor in tensors:
            shape = list(tensor.shape)
            shape[axis] = size - shape[axis]
            out.append(torch.cat([tensor, tensor.new_full(shape, value)], axis))
        return torch.cat(out)

    return new_clips(
        filled([each.latents for each in films], 2, most * WINDOW + 1),
        filled(texts, 1, most, empty),
        filled([each.vision for each in films], 1, most + 1),
        WINDOW,
        filled([each.stills for each in films], 1, most + 1),
        torch.cat([torch.full((len(text),), text.shape[1]) for text in texts]),
    )


def _fingerprints(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that encode films and captions."""
    files = {name: folder / f"{name}.safetensors" for name in ENCODERS}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
