"""Which films the tests of meaning look at, and of which checkpoint.

FRAMEPACK_DEMO_CHECKPOINT names the folder of another checkpoint; with random weights the tests run, and most fail.
"""

import os
from pathlib import Path
from typing import NamedTuple

from framepack_pack.framepack_core.history import History, film_latents
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.tools.demo_world.scene import Scenes, scene
from framepack_pack.tools.evaluation.films import Sampled, Tools
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FRAMEPACK_DEMO_CHECKPOINT") or ROOT / "demo_checkpoint")
STEPS = 12
DIRECTIONS = list(Direction)

# Combinations that training never shows. The motions of a film are such that neither obeys the other's prompt when they
# change places, jumps between them included (the judge's word on the world's own films).
SCENES = (
    scene("triangle", "red", "meadow", ["up", "right"]),
    scene("star", "blue", "beach", ["bounces", "grows"]),
    scene("square", "green", "white", ["left", "spins"]),
)


class Film(NamedTuple):
    """Films of one direction with everything that tests look at."""

    scenes: Scenes
    sampled: Sampled
    frames: Tensor  # [B, F, H, W, 3]


def decode_at_once(tools: Tools, history: History, films: int, latent_frames: int | None = None) -> Tensor:
    """The first films, or only how they begin, without cross-fades, as core's VAE Decode gives them.

    Cheaper than FramePack Decode, for films that need not look good: decoding is most of these tests' time.
    """
    return tools.checkpoint.vae.decode(film_latents(history)[:films, :, :latent_frames])
