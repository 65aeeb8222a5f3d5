"""What a film of the demo world is: a few numbers for each film, and the names behind them."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

SECTION_FRAMES = 36  # a section of the film, 9 latent frames of 4

SHAPES = ("ball", "square", "triangle", "star", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "cyan")
SIZES = ("small", "big")
BACKGROUNDS = ("white", "black", "grey", "gradient", "meadow", "beach", "night")
MOTIONS = (
    "right",
    "left",
    "up",
    "down",
    "stays still",
    "spins",
    "grows",
    "shrinks",
    "bounces",
)

VARIANTS = 3  # free numbers that vary a background: tint, layout, and where its sun or moon is


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """B films as plain data. Section k holds frames 36 k + 1 to 36 k + 36; frame 0 is the start image."""

    shape: Tensor  # [B] index into SHAPES
    colour: Tensor  # [B] index into COLOURS
    size: Tensor  # [B] index into SIZES, at frame 0
    background: Tensor  # [B] index into BACKGROUNDS
    start: Tensor  # [B, 2] the object's centre at frame 0: (x, y) as parts of the picture's width and height
    variant: Tensor  # [B, VARIANTS] 0..1
    motions: Tensor  # [B, S] index into MOTIONS

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, films: slice | Tensor) -> "Scenes":
        """Some of the films: a slice, a mask or a list of numbers."""
        return Scenes(*(getattr(self, field.name)[films] for field in fields(self)))

    @property
    def device(self) -> torch.device:
        """Where the numbers are, and hence where the films are drawn."""
        return self.shape.device

    @property
    def sections(self) -> int:
        """Sections of each film."""
        return self.motions.shape[1]

    @property
    def frames(self) -> int:
        """Frames of each film, start image included."""
        return SECTION_FRAMES * self.sections + 1

    def to(self, device: torch.device | str) -> "Scenes":
        """The same films on another device."""
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))


def scene(
    shape: str,
    colour: str,
    background: str,
    motions: list[str],
    size: str = "big",
    start: tuple[float, float] = (0.5, 0.5),
    variant: tuple[float, ...] = (0.5,) * VARIANTS,
    device: torch.device | str = "cpu",
) -> Scenes:
    """One film by name. Raises ValueError for a name that the world does not have."""
    indices = [
        _index("shape", shape, SHAPES),
        _index("colour", colour, COLOURS),
        _index("size", size, SIZES),
        _index("background", background, BACKGROUNDS),
    ]
    return Scenes(
        *(torch.tensor([index], device=device) for index in indices),
        start=torch.tensor([start], device=device),
        variant=torch.tensor([variant], device=device),
        motions=torch.tensor([[_index("motion", motion, MOTIONS) for motion in motions]], device=device),
    )


def join(scenes: list[Scenes]) -> Scenes:
    """Several batches of films of one length as one batch."""
    return Scenes(*(torch.cat([getattr(batch, field.name) for batch in scenes]) for field in fields(Scenes)))


def picture_extent(height: int, width: int) -> tuple[float, float]:
    """Width and height of a picture in units of its short side."""
    short = min(height, width)
    return width / short, height / short


def section_frames(section: int) -> range:
    """Frames from the one that a section starts with, the last of the section before, to its own last: 37."""
    return range(section * SECTION_FRAMES, (section + 1) * SECTION_FRAMES + 1)


def _index(what: str, name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise ValueError(f"There is no {what} {name!r} in the demo world; it has {', '.join(names)}.")
    return names.index(name)
