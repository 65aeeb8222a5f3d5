"""Conditionings of one section: the entries that hold for it, with what it sees packed in.

Keys that our nodes add to CONDITIONING entries: framepack_history (PackedHistory), framepack_range
(PromptRange), and core's own guidance and clip_vision_output.
"""

from typing import Any, NamedTuple

from ..history import History
from ..model.config import FramePackConfig
from ..packing import PackedHistory
from ..prompt_ranges import PromptRange, check_in_film, range_for
from ..section_plan import Direction, Section
from .encoder_widths import check_prompt, check_vision
from .native_model import HISTORY_KEY, FramePackModel

RANGE_KEY = "framepack_range"
CHECKPOINT_ATTACHMENT = "framepack_checkpoint"
"""On a MODEL that our loaders made: (folder and file name, its Direction or None when it is made for both)."""
Conditioning = list[list[Any]]


class VisionOutput(NamedTuple):
    """Vision features in the shape of core's CLIP_VISION_OUTPUT, as far as the model reads it."""

    last_hidden_state: Any  # [B, tokens, width]


def set_values(conditioning: Conditioning, values: dict[str, Any]) -> Conditioning:
    """A copy whose entries have these keys; the given entries stay as they are."""
    return [[entry[0], {**entry[1], **values}] for entry in conditioning]


def section_conditioning(
    conditioning: Conditioning, history: History, section: Section, packed: PackedHistory
) -> Conditioning:
    """Entries that hold for a section, each with the packed history and the start image's features."""
    out = set_values(entries_for(conditioning, history, section), {HISTORY_KEY: packed})
    if history.image_embeds is not None:
        for entry in out:
            entry[1].setdefault("clip_vision_output", VisionOutput(history.image_embeds))
    return out


def entries_for(conditioning: Conditioning, history: History, section: Section) -> Conditioning:
    """Entries whose range covers the section best; those without a range where no range does."""
    ranges = prompt_ranges(conditioning)
    rest = [entry for entry in conditioning if RANGE_KEY not in entry[1]]
    chosen = range_for(section, ranges, history.plan, bool(rest))
    return rest if chosen is None else [entry for entry in conditioning if entry[1].get(RANGE_KEY) == chosen]


def prompt_ranges(conditioning: Conditioning) -> list[PromptRange]:
    """Ranges of the entries that have one, each once."""
    return list(dict.fromkeys(entry[1][RANGE_KEY] for entry in conditioning if RANGE_KEY in entry[1]))


def check_conditioning(conditioning: Conditioning, history: History, name: str) -> None:
    """Raises ValueError for an empty conditioning, ranges outside the film, and missing vision features."""
    if not conditioning:
        raise ValueError(f"{name} is empty; connect FramePack Section Prompts or CLIP Text Encode.")
    check_in_film(prompt_ranges(conditioning), history.plan)
    has_vision = history.image_embeds is not None or all("clip_vision_output" in entry[1] for entry in conditioning)
    if history.start_latent is not None and not has_vision:
        raise ValueError(
            "The film has a start image but no vision embedding of it; connect clip_vision_output of "
            "FramePack Start Image to FramePack History (the model needs sigclip_vision_patch14_384)."
        )


def check_model(model: Any, conditionings: dict[str, Conditioning], history: History) -> None:
    """Raises ValueError when MODEL is not FramePack or of the other direction, or encoders do not fit it.

    Reads no weights.
    """
    check_framepack(model)
    checkpoint, direction = model.attachments.get(CHECKPOINT_ATTACHMENT, ("this transformer", None))
    _check_direction(checkpoint, direction, history)
    sizes: FramePackConfig = model.model.diffusion_model.config
    for name, conditioning in conditionings.items():
        for cond, values in conditioning:
            check_prompt(name, checkpoint, sizes, cond, values.get("pooled_output"))
            vision = values.get("clip_vision_output")
            if vision is not None:
                check_vision(name, checkpoint, sizes, vision.last_hidden_state)
    if history.image_embeds is not None:
        check_vision("the start image", checkpoint, sizes, history.image_embeds)


def check_framepack(model: Any) -> None:
    """Raises ValueError for the MODEL of another architecture."""
    if not isinstance(model.model, FramePackModel):
        raise ValueError(
            f"The model is {type(model.model).__name__}, not FramePack; load a FramePack transformer with "
            "Load FramePack Model or Load Diffusion Model."
        )


def _check_direction(checkpoint: str, direction: Direction | None, history: History) -> None:
    if direction not in (None, history.plan.direction):
        raise ValueError(
            f"{checkpoint} was made for {direction.value} films, but the film is {history.plan.direction.value}. "
            "Change the mode of FramePack History or load the other checkpoint; rename the file if its name is wrong."
        )
