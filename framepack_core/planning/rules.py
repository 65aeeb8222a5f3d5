"""What does not go together, as data: when, how bad, what is said, and what to do."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..constants import FRAMES_PER_SECOND, LATENT_WINDOW_SIZE, RESOLUTION, SIZE_MULTIPLE
from ..section_plan import Direction

if TYPE_CHECKING:
    from .resolve import Estimate

ERROR, WARNING, NOTE = "error", "warning", "note"
LONGEST_SECONDS = 120  # FP demo_gradio.py: the end of its length slider
FAR_FROM_TRAINING = 1.5  # times the pixels of 640x640, and its inverse
FEW_STEPS = 15  # of the 25 that are usual


class Message(NamedTuple):
    """Something to know before the run."""

    severity: str
    rule: str
    text: str
    remedy: str


class Rule(NamedTuple):
    """says and remedy may name values of the estimate and its request, as in {e.streamed} or {r.cfg}."""

    name: str
    severity: str
    applies: Callable[["Estimate"], bool]
    says: str
    remedy: str


RULES = (
    Rule(
        "size multiple",
        ERROR,
        lambda e: bool(e.request.width % SIZE_MULTIPLE or e.request.height % SIZE_MULTIPLE),
        "{r.width}x{r.height} pixels is not a multiple of 16 on both sides.",
        "Use FramePack Resolution, or FramePack Start Image, which resizes.",
    ),
    Rule(
        "direction",
        ERROR,
        lambda e: e.request.checkpoint_direction not in (None, e.request.plan.direction),
        "{r.checkpoint} was made for films of the other direction; this one is {r.plan.direction.value}.",
        "Change mode, or load the other checkpoint.",
    ),
    Rule(
        "F1 and end image",
        ERROR,
        lambda e: e.request.has_end_image and e.request.plan.direction is Direction.FORWARD,
        "A forward (F1) film never sees an end image.",
        "Disconnect end_latent, or use mode backward with a FramePackI2V checkpoint.",
    ),
    Rule(
        "F1 and paddings",
        ERROR,
        lambda e: e.request.has_paddings and e.request.plan.direction is Direction.FORWARD,
        "latent_paddings belong to backward films; this one is forward (F1).",
        "Empty latent_paddings.",
    ),
    Rule(
        "cfg and negative",
        ERROR,
        lambda e: e.request.cfg != 1.0 and not e.request.has_negative,
        "cfg is {r.cfg:g} and there is no negative prompt.",
        "Connect negative here and to the sampler, or set cfg to 1.",
    ),
    Rule(
        "start image and vision",
        ERROR,
        lambda e: e.request.starts_with_image and not e.request.has_vision,
        "The film has a start image but no vision features of it.",
        "Connect clip_vision_output of FramePack Start Image to FramePack History.",
    ),
    Rule(
        "two skippers",
        ERROR,
        lambda e: len(e.request.skippers) > 1,
        "Steps would be skipped by {skippers}, on each other's results.",
        "Take off all but one.",
    ),
    Rule(
        "two quantisers",
        ERROR,
        lambda e: len(e.request.quantisers) > 1,
        "The weights are quantised by {quantisers}.",
        "Load a file of one kind, with weight_dtype default.",
    ),
    Rule(
        "no room",
        ERROR,
        lambda e: e.missing_vram > 0,
        "Even with all weights streamed, a step lacks {missing} of VRAM.",
        "Make the film smaller, lower latent_window_size or batch, or close other programs.",
    ),
    Rule(
        "compile and streaming",
        WARNING,
        lambda e: e.request.compiled and e.streamed > 0,
        "The model is compiled while {streamed} of its weights are streamed, which compiles again as they move.",
        "Take off the compile node, or make the weights fit (fp8, a smaller film).",
    ),
    Rule(
        "GGUF and LoRA",
        WARNING,
        lambda e: "GGUF" in e.request.quantisers and e.request.has_loras,
        "A LoRA on GGUF weights is added anew at every step, which is slow.",
        "Use an fp8 or bf16 file with LoRAs.",
    ),
    Rule(
        "guidance doubles",
        NOTE,
        lambda e: e.request.cfg != 1.0,
        "cfg {r.cfg:g} computes every step twice.",
        "Set cfg to 1 unless you need the negative prompt; the distilled guidance is in the prompt node.",
    ),
    Rule(
        "window",
        WARNING,
        lambda e: e.request.plan.window != LATENT_WINDOW_SIZE,
        "latent_window_size is {r.plan.window}; the checkpoints were trained with 9.",
        "Leave it at 9 unless memory is short.",
    ),
    Rule(
        "size of the training",
        WARNING,
        lambda e: not 1 / FAR_FROM_TRAINING <= e.request.width * e.request.height / RESOLUTION**2 <= FAR_FROM_TRAINING,
        "{r.width}x{r.height} pixels is far from what the checkpoints were trained with, about 640x640.",
        "Use FramePack Resolution, and scale the film up afterwards.",
    ),
    Rule(
        "length",
        WARNING,
        lambda e: e.frames > LONGEST_SECONDS * FRAMES_PER_SECOND,
        "{e.seconds:.0f} s is longer than the original offers (120 s).",
        "Make it in parts with max_sections, and look at each.",
    ),
    Rule(
        "few steps",
        WARNING,
        lambda e: e.request.steps < FEW_STEPS,
        "{r.steps} steps are few; 25 are usual.",
        "Step skipping saves as much and keeps more.",
    ),
    Rule(
        "no start image",
        NOTE,
        lambda e: not e.request.starts_with_image,
        "There is no start image; the checkpoints were trained to start with one.",
        "Connect FramePack Start Image for better films.",
    ),
    Rule(
        "slow link",
        WARNING,
        lambda e: (
            e.streaming_seconds is not None and e.step_seconds is not None and e.streaming_seconds > e.step_seconds
        ),
        "Streaming {streamed} of weights takes longer than a step computes.",
        "Use fp8 weights, or free VRAM.",
    ),
    Rule(
        "image in RAM",
        WARNING,
        lambda e: e.machine.ram is not None and 2 * e.image_bytes > e.machine.ram,
        "The film as IMAGE takes {image}, and nodes after it as much again.",
        "Use FramePack Decode to Video, which needs the same memory for any length.",
    ),
    Rule(
        "weights in RAM",
        WARNING,
        lambda e: e.machine.ram is not None and e.ram > e.machine.ram,
        "Weights that are not on the card take {ram} of RAM, more than is free; the system will read them from disk.",
        "Close programs, or use fp8 weights.",
    ),
    Rule(
        "decoding in parts",
        NOTE,
        lambda e: None not in (e.request.decode_bytes, e.machine.vram) and e.request.decode_bytes > e.machine.vram,
        "Decoding a section and its neighbour in one go would take {decode}.",
        "Nothing to do: FramePack Decode takes fewer latents at a time.",
    ),
    Rule(
        "another card",
        WARNING,
        lambda e: e.request.speed is not None and e.request.speed.card != e.machine.card,
        "The report is of {r.speed.card}, not of {e.machine.card}.",
        "Take a report of this card for the time.",
    ),
    Rule(
        "time unknown",
        NOTE,
        lambda e: e.step_seconds is None,
        "How fast {e.machine.card} is, is not known here.",
        "Make one section and connect report_json of FramePack Sampler, or fill in seconds_per_step.",
    ),
)
