"""What is asked of the planner: the film and its settings, and the machine. Plain values, no host."""

from dataclasses import dataclass

from ..constants import STEPS
from ..model.config import FramePackConfig
from ..run_report import Speed
from ..section_plan import Direction, SectionPlan
from .cost import TEXT_TOKENS, Weights


@dataclass(frozen=True)
class Request:
    """A film, how it is sampled, and what is on the model. Sizes in pixels and bytes."""

    plan: SectionPlan
    width: int
    height: int
    config: FramePackConfig
    weights: Weights
    batch: int = 1
    made: int = 0  # sections that the film has already
    starts_with_image: bool = True
    has_vision: bool = True  # features of the start image
    has_end_image: bool = False
    has_paddings: bool = False
    steps: int = STEPS
    cfg: float = 1.0
    has_negative: bool = False
    prompts: tuple[str, ...] = ()  # what holds for each section, in film order; empty: not known
    text_tokens: int = TEXT_TOKENS
    image_tokens: int | None = None
    itemsize: int = 2  # bytes of a number that is computed with
    checkpoint: str = "the checkpoint"
    checkpoint_direction: Direction | None = None  # None: not known, or made for both
    skippers: tuple[str, ...] = ()
    quantisers: tuple[str, ...] = ()
    compiled: bool = False
    has_loras: bool = False
    speed: Speed | None = None  # of a run's report
    seconds_per_step: float | None = None  # as the user says
    decode_bytes: int | None = None  # the host's estimate for the longest stretch that is decoded in one go


@dataclass(frozen=True)
class Machine:
    """What the film would be made on."""

    card: str
    vram: int | None = None  # bytes that ComfyUI can have; None: no card, all in RAM
    ram: int | None = None  # free bytes
    tflops: float | None = None  # that forwards reach; None: not known
    link: float | None = None  # bytes per second from RAM to the card
    reserve: int | None = None  # bytes that the host keeps from weights; None: what the forward takes
