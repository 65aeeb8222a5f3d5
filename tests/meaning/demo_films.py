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

# combinations that training never shows, and motions that differ from section to section
SCENES = (
    scene("triangle", "red", "meadow", ["right", "bounces"]),
    scene("star", "blue", "beach", ["grows", "up"]),
    scene("square", "green", "white", ["slowly down", "left"]),
)


class Film(NamedTuple):
    """Films of one direction with everything that tests look at."""

    scenes: Scenes
    sampled: Sampled
    frames: Tensor  # [B, F, H, W, 3]


def decode_at_once(tools: Tools, history: History) -> Tensor:
    """Frames without cross-fades, as core's VAE Decode gives them: cheaper, for films that need not look good."""
    return tools.checkpoint.vae.decode(film_latents(history))
