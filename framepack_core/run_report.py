"""What a run took, as a value: text for people, JSON for the planner and for a video's metadata."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

KIND = "framepack run report"
VERSION = 1
GIB = 2**30


@dataclass(frozen=True)
class SectionReport:
    """One section. Memory in bytes, None where it is not known."""

    name: str
    seconds: float  # with loading, if it was loaded for this section
    steps: int
    step_seconds: float | None  # mean of the steps after the second, by the host's clock; None below four steps
    computed: int | None = None  # steps that were not skipped; None: nothing skips
    skipper: str | None = None
    peak_vram: int | None = None  # largest that torch had allocated
    card_used: int | None = None  # at the section's end, by all programs
    ram: int | None = None  # resident memory of ComfyUI at the section's end
    weights: int = 0  # of the transformer, as the host manages them
    weights_on_card: int = 0

    @property
    def streamed(self) -> int:
        """Bytes of weights that are not on the card, so must come to it at every forward."""
        return max(self.weights - self.weights_on_card, 0)


@dataclass(frozen=True)
class RunReport:
    """One run of the section loop."""

    film: dict[str, Any]  # width, height, batch, mode, window, sections, seed
    sampling: dict[str, Any]  # steps, cfg, sampler, forwards_per_step, tokens, tflop_per_step
    versions: dict[str, str]
    card: str
    attention: str
    sections: tuple[SectionReport, ...] = field(default=())

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the sections, skipped steps counted as steps; None when every section had too few steps."""
        known = [section.step_seconds for section in self.sections if section.step_seconds is not None]
        return statistics.median(known) if known else None

    def totals(self) -> dict[str, Any]:
        """Figures of the whole run, None where nothing is known."""
        skipping = [section for section in self.sections if section.computed is not None]
        return {
            "seconds": round(sum(section.seconds for section in self.sections), 3),
            "seconds_per_step": self.seconds_per_step,
            "skipped_steps": sum(section.steps - (section.computed or 0) for section in skipping),
            "peak_vram": _largest(section.peak_vram for section in self.sections),
            "card_used": _largest(section.card_used for section in self.sections),
            "ram": _largest(section.ram for section in self.sections),
            "streamed_per_forward": _largest(section.streamed for section in self.sections),
        }

    def as_json(self) -> str:
        """Everything, on one line; numbers are bytes and seconds."""
        return json.dumps({"kind": KIND, "version": VERSION, **asdict(self), "totals": self.totals()})

    def as_text(self) -> str:
        """The same for people."""
        totals, film, sampling = self.totals(), self.film, self.sampling
        speed = "too few steps to time" if self.seconds_per_step is None else f"{self.seconds_per_step:.3f} s per step"
        skipped = f", {totals['skipped_steps']} steps skipped" if totals["skipped_steps"] else ""
        lines = [
            f"{len(self.sections)} of {film['sections']} {film['mode']} sections, {film['width']}x{film['height']}, "
            f"window {film['window']}, seed {film['seed']}",
            f"{sampling['steps']} steps, cfg {sampling['cfg']:g}, {sampling['sampler']}; {sampling['tokens']} tokens, "
            f"{sampling['tflop_per_step']:.4g} TFLOP per step",
            f"{totals['seconds']:.1f} s, {speed}{skipped}",
            f"largest memory: {_gib(totals['peak_vram'])} of torch on the card, {_gib(totals['card_used'])} of all "
            f"programs there, {_gib(totals['ram'])} RAM",
            f"weights streamed per forward: {_gib(totals['streamed_per_forward'])}",
            f"{self.card}; attention {self.attention}; "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]
        return "\n".join(lines + [_section_line(section) for section in self.sections])


class Speed(NamedTuple):
    """What a report says about speed: a step of so many operations, on that card, in this time."""

    seconds_per_step: float
    tflop_per_step: float
    card: str


def read_speed(text: str) -> Speed:
    """Speed of a report's JSON. Raises ValueError for other text, and for a run that was too short to time."""
    try:
        report = json.loads(text)
        speed = report["totals"]["seconds_per_step"]
        flop, card = report["sampling"]["tflop_per_step"], report["card"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"The report is not one of FramePack Sampler ('{text[:40]}'); connect or paste its output report_json."
        ) from None
    if not speed:
        raise ValueError("The report is of a run with fewer than 4 steps per section, which says nothing about speed.")
    return Speed(float(speed), float(flop), str(card))


def _section_line(section: SectionReport) -> str:
    speed = "" if section.step_seconds is None else f", {section.step_seconds:.3f} s per step"
    skipped = ""
    if section.computed is not None:
        skipped = f", {section.skipper} computed {section.computed} of {section.steps} steps"
    return f"{section.name}: {section.seconds:.1f} s{speed}{skipped}"


def _largest(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.2f} GiB"
