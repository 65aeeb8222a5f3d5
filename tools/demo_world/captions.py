"""What a film shows, section by section, in plain English with synonyms.

Without a generator the wording is always the first of each list: "a big green star moves right on a white
background". With one, template, synonyms, capitals and full stop are drawn.
"""

import re
from collections.abc import Sequence
from string import Formatter
from typing import TypeVar

import torch

from .scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scenes

FULL_TEMPLATES = (
    "a {size} {colour} {shape} {does} {place}",
    "a {size} {colour} {shape} is {doing} {place}",
    "the {size} {colour} {shape} {does} {place}",
    "{place}, a {size} {colour} {shape} {does}",
    "a {size} {colour} {shape} {place}, {doing}",
)  # these name everything, which text-to-video needs
SHORT_TEMPLATES = (
    "a {colour} {shape} {does} {place}",
    "the {colour} {shape} is {doing} {place}",
    "the {size} {colour} {shape} {does}",
    "the {colour} {shape} {does}",
    "the {colour} {shape} is {doing}",
    "the {shape} {does}",
    "the {shape} is {doing}",
    "it {does}",
)
SHAPE_WORDS = {
    "ball": ("ball", "circle"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "heart": ("heart",),
}
COLOUR_WORDS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "cyan": ("cyan", "turquoise"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
PLACES = {
    "white": ("on a white background", "on white", "in front of a white wall"),
    "black": ("on a black background", "on black", "in front of a black wall"),
    "grey": ("on a grey background", "on a gray background", "in front of a grey wall"),
    "gradient": ("on a gradient background", "on a colourful background", "on a colorful gradient"),
    "meadow": ("on a meadow", "in a meadow", "on a grassy field", "in the grass"),
    "beach": ("on a beach", "at the beach", "by the sea", "on the sand"),
    "night": ("at night", "in the night", "under the night sky", "in the moonlight"),
}
_Choice = TypeVar("_Choice")
_TRAVEL = (("moves", "moving"), ("goes", "going"), ("slides", "sliding"), ("travels", "travelling"))
_DIRECTIONS = {
    "right": ("right", "to the right"),
    "left": ("left", "to the left"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_OTHER_MOTIONS = {
    "stays still": (
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("stands still", "standing still"),
        ("rests", "resting"),
    ),
    "spins": (
        ("spins around", "spinning around"),
        ("spins", "spinning"),
        ("turns around", "turning around"),
        ("rotates", "rotating"),
    ),
    "grows": (
        ("grows for a moment", "growing for a moment"),
        ("gets bigger for a moment", "getting bigger for a moment"),
        ("swells", "swelling"),
    ),
    "shrinks": (
        ("shrinks for a moment", "shrinking for a moment"),
        ("gets smaller for a moment", "getting smaller for a moment"),
        ("contracts", "contracting"),
    ),
    "bounces": (
        ("bounces up and down", "bouncing up and down"),
        ("bounces", "bouncing"),
        ("hops", "hopping"),
        ("jumps up and down", "jumping up and down"),
    ),
}


def motion_phrases(motion: str) -> tuple[tuple[str, str], ...]:
    """All wordings of a motion, each as (what it does, what it is doing)."""
    if motion in _OTHER_MOTIONS:
        return _OTHER_MOTIONS[motion]
    ways = _DIRECTIONS[motion]
    return tuple((f"{does} {way}", f"{doing} {way}") for does, doing in _TRAVEL for way in ways)


def captions(
    scenes: Scenes, section: int, generator: torch.Generator | None = None, *, full: bool = False
) -> list[str]:
    """One caption of a section for every film; a seed gives the same ones again.

    full: only templates that name size, colour, shape and background.
    """
    templates = FULL_TEMPLATES if full or generator is None else FULL_TEMPLATES + SHORT_TEMPLATES
    looks = torch.stack(
        [scenes.size, scenes.colour, scenes.shape, scenes.background, scenes.motions[:, section]], 1
    ).tolist()
    draws = torch.zeros(len(scenes), len(looks[0]) + 2, dtype=torch.long)
    if generator is not None:
        draws = torch.randint(2**31, draws.shape, generator=generator)
    return [_caption(film, templates, draw) for film, draw in zip(looks, draws.tolist(), strict=True)]


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, in lower case, sorted."""
    texts = [part for template in FULL_TEMPLATES + SHORT_TEMPLATES for part, *_ in Formatter().parse(template)]
    for words in (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, PLACES):
        texts += [text for synonyms in words.values() for text in synonyms]
    texts += [text for motion in MOTIONS for pair in motion_phrases(motion) for text in pair]
    return tuple(sorted({"an", *re.findall("[a-z]+", " ".join(texts))}))


def _caption(film: list[int], templates: tuple[str, ...], draw: list[int]) -> str:
    """film: size, colour, shape, background, motion; draw: one random number for each, then template and style."""
    names = (SIZES[film[0]], COLOURS[film[1]], SHAPES[film[2]], BACKGROUNDS[film[3]])
    tables = (SIZE_WORDS, COLOUR_WORDS, SHAPE_WORDS, PLACES)
    size, colour, shape, place = (
        _pick(table[name], number) for table, name, number in zip(tables, names, draw, strict=False)
    )
    does, doing = _pick(motion_phrases(MOTIONS[film[4]]), draw[4])
    template, style = _pick(templates, draw[5]), draw[6] % 3
    text = template.format(size=size, colour=colour, shape=shape, place=place, does=does, doing=doing)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text if style == 0 else text[0].upper() + text[1:] + "." * (style == 1)


def _pick(choices: Sequence[_Choice], number: int) -> _Choice:
    return choices[number % len(choices)]
