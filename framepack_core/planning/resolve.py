"""From a request and a machine to what the film will take, and what stands in its way."""

from dataclasses import dataclass

from ..constants import FRAMES_PER_SECOND, LATENT_CHANNELS, PIXELS_PER_LATENT
from ..history import film_frames
from ..model.pieces import LARGEST_PIECE, SMALLEST_PIECE
from .cost import Tokens, activation_bytes, count_tokens, forward_flops
from .request import Machine, Request
from .rules import RULES, Message

GIB = 2**30


@dataclass(frozen=True)
class Span:
    """One section in the finished film."""

    place: int  # in film order, from 0
    made_as: int  # in the order of generation, from 1
    frames: range  # of the video
    prompt: str
    done: bool

    @property
    def seconds(self) -> tuple[float, float]:
        return self.frames.start / FRAMES_PER_SECOND, self.frames.stop / FRAMES_PER_SECOND


@dataclass(frozen=True)
class Estimate:
    """Figures of a film. Bytes and seconds; None where nothing is known."""

    request: Request
    machine: Machine
    spans: tuple[Span, ...]  # in film order
    tokens: Tokens
    tflop_per_step: float
    step_seconds: float | None
    step_source: str
    on_card: int  # weights
    activations: int
    missing_vram: int

    @property
    def frames(self) -> int:
        """Of the video."""
        return self.spans[-1].frames.stop

    @property
    def seconds(self) -> float:
        """Of the video."""
        return self.frames / FRAMES_PER_SECOND

    @property
    def missing_sections(self) -> int:
        return len(self.spans) - self.request.made

    @property
    def sampling_seconds(self) -> float | None:
        """Of the sections that are missing; without loading and decoding."""
        steps = self.missing_sections * self.request.steps
        return None if self.step_seconds is None else steps * self.step_seconds

    @property
    def streamed(self) -> int:
        """Weights that are brought to the card at every forward."""
        return 0 if self.machine.vram is None else self.request.weights.loop - self.on_card

    @property
    def streaming_seconds(self) -> float | None:
        """Of a forward, beside computing."""
        return None if self.machine.link is None else self.streamed / self.machine.link

    @property
    def vram(self) -> int:
        """Peak while sampling, as torch counts it."""
        return self.on_card + self.activations

    @property
    def ram(self) -> int:
        """Weights that are not on the card, and the film's latents twice, in float32."""
        request = self.request
        cells = request.width * request.height // PIXELS_PER_LATENT**2
        latents = 4 * request.batch * LATENT_CHANNELS * request.plan.latent_frames * cells
        return sum(request.weights) - self.on_card + 2 * latents

    @property
    def image_bytes(self) -> int:
        """Of the film as IMAGE."""
        return 4 * 3 * self.request.batch * self.frames * self.request.width * self.request.height


def resolve(request: Request, machine: Machine) -> tuple[Estimate, list[Message]]:
    """The estimate, and the messages of all rules that apply, the worst first as the table has them."""
    tokens = count_tokens(
        request.width,
        request.height,
        request.plan.window,
        request.starts_with_image,
        request.text_tokens,
        request.image_tokens,
    )
    forwards = request.batch * (1 if request.cfg == 1.0 else 2)
    tflop = forwards * forward_flops(request.config, tokens.total) / 1e12
    on_card, activations, missing = _memory(request, machine, tokens.total, forwards)
    seconds, source = _step_seconds(request, machine, tflop, request.weights.loop - on_card)
    estimate = Estimate(
        request, machine, spans_of(request), tokens, tflop, seconds, source, on_card, activations, missing
    )
    return estimate, apply_rules(estimate)


def apply_rules(estimate: Estimate) -> list[Message]:
    """Messages of the rules that apply."""
    values = {
        "e": estimate,
        "r": estimate.request,
        "skippers": " and ".join(estimate.request.skippers),
        "quantisers": " and ".join(estimate.request.quantisers),
        "streamed": gib(estimate.streamed),
        "missing": gib(estimate.missing_vram),
        "image": gib(estimate.image_bytes),
        "ram": gib(estimate.ram),
        "decode": gib(estimate.request.decode_bytes or 0),
    }
    return [
        Message(rule.severity, rule.name, rule.says.format(**values), rule.remedy)
        for rule in RULES
        if rule.applies(estimate)
    ]


def spans_of(request: Request) -> tuple[Span, ...]:
    """Sections in film order with their frames of the video: 36 each, with what the first latent frame takes off."""
    spans, plan = [], request.plan
    for section in sorted(plan.sections, key=plan.place):
        place = plan.place(section)
        first = int(request.starts_with_image) + place * plan.window  # latent frame of the film
        begin = 0 if place == 0 else film_frames(first)
        prompt = request.prompts[place] if request.prompts else ""
        frames = range(begin, film_frames(first + plan.window))
        spans.append(Span(place, section.number + 1, frames, prompt, section.number < request.made))
    return tuple(spans)


def _memory(request: Request, machine: Machine, tokens: int, forwards: int) -> tuple[int, int, int]:
    """(weights on the card, activations, what is missing), bytes."""
    full = activation_bytes(request.config, tokens * forwards, request.itemsize, LARGEST_PIECE)
    least = activation_bytes(request.config, tokens * request.batch, request.itemsize, SMALLEST_PIECE)
    loop = request.weights.loop
    if machine.vram is None:
        return 0, full, 0
    kept = full if machine.reserve is None else machine.reserve
    on_card = loop if loop + kept <= machine.vram else max(min(loop, machine.vram - kept), 0)
    room = machine.vram - on_card
    return on_card, max(min(full, room), least), max(least - machine.vram, 0)


def _step_seconds(request: Request, machine: Machine, tflop: float, streamed: int) -> tuple[float | None, str]:
    """Seconds of a step, and where that is from."""
    if request.seconds_per_step:
        return request.seconds_per_step, "as you say"
    if request.speed is not None:
        return (
            request.speed.seconds_per_step * tflop / request.speed.tflop_per_step,
            f"measured on {request.speed.card}",
        )
    if machine.tflops is None:
        return None, "unknown"
    computing = tflop / machine.tflops
    streaming = streamed / machine.link if machine.link and machine.vram is not None else 0.0
    return max(computing, streaming), "a guess from the card's name"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB"
