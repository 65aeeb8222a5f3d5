"""An estimate and its messages as text for people and as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from .resolve import Estimate, Span, gib
from .rules import Message


def as_text(estimate: Estimate, messages: Sequence[Message]) -> str:
    """Messages first, then the film, what it takes, and its sections in film order."""
    request, machine = estimate.request, estimate.machine
    done = f", {request.made} made already" if request.made else ""
    speed = "unknown" if estimate.step_seconds is None else f"{estimate.step_seconds:.2f} s per step"
    film_time = (
        "" if estimate.sampling_seconds is None else f", {duration(estimate.sampling_seconds)} for what is missing"
    )
    where = "no card" if machine.vram is None else f"{gib(machine.vram)} of VRAM"
    lines = [
        *(f"{message.severity.upper()}: {message.text} {message.remedy}" for message in messages),
        f"{len(estimate.spans)} {request.plan.direction.value} sections of {request.plan.window} latent frames{done}; "
        f"{estimate.frames} frames of {request.width}x{request.height}, {estimate.seconds:.2f} s",
        f"{estimate.tokens.total} tokens per forward ({estimate.tokens.section} of the section, "
        f"{estimate.tokens.history} history, {estimate.tokens.image} image, {estimate.tokens.text} text), "
        f"{estimate.tflop_per_step:.4g} TFLOP per step",
        f"sampling: {speed} ({estimate.step_source}){film_time}",
        f"{machine.card}, {where}: {gib(estimate.vram)} while sampling, {gib(estimate.on_card)} of it weights",
        f"streamed at every step: {gib(estimate.streamed)} of weights",
        f"RAM beside ComfyUI itself: {gib(estimate.ram)}, and {gib(estimate.image_bytes)} for the film as IMAGE",
        *(_span_line(span) for span in estimate.spans),
    ]
    return "\n".join(lines)


def as_json(estimate: Estimate, messages: Sequence[Message]) -> str:
    """The same with plain numbers: bytes, seconds, frames."""
    return json.dumps({**figures(estimate), "messages": [message._asdict() for message in messages]})


def figures(estimate: Estimate) -> dict[str, Any]:
    """All figures of an estimate, by name."""
    request = estimate.request
    return {
        "width": request.width,
        "height": request.height,
        "mode": request.plan.direction.value,
        "window": request.plan.window,
        "frames": estimate.frames,
        "seconds": estimate.seconds,
        "steps": request.steps,
        "tokens": {**estimate.tokens._asdict(), "total": estimate.tokens.total},
        "tflop_per_step": estimate.tflop_per_step,
        "seconds_per_step": estimate.step_seconds,
        "seconds_per_step_from": estimate.step_source,
        "sampling_seconds": estimate.sampling_seconds,
        "card": estimate.machine.card,
        "vram": estimate.vram,
        "weights_on_card": estimate.on_card,
        "activations": estimate.activations,
        "streamed_per_forward": estimate.streamed,
        "ram": estimate.ram,
        "image_bytes": estimate.image_bytes,
        "sections": [_span_figures(span) for span in estimate.spans],
    }


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _span_line(span: Span) -> str:
    begin, end = span.seconds
    state = "made" if span.done else f"made as {span.made_as}"
    prompt = f": {span.prompt}" if span.prompt else ""
    frames = f"frames {span.frames.start} to {span.frames.stop - 1}"
    return f"section {span.place}, {begin:.2f} s to {end:.2f} s, {frames}, {state}{prompt}"


def _span_figures(span: Span) -> dict[str, Any]:
    begin, end = span.seconds
    return {
        "section": span.place,
        "made_as": span.made_as,
        "first_frame": span.frames.start,
        "last_frame": span.frames.stop - 1,
        "begin": begin,
        "end": end,
        "prompt": span.prompt,
        "done": span.done,
    }
