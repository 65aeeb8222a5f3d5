"""Prompts for stretches of the film: reading them from text, and which hold for a section.

Accepted text, sections counted in film order from 0:

* one prompt: holds everywhere;
* several lines: line k is for section k, the last line for the rest;
* headers: [0s-2s: text] for seconds, [2: text] or [2-4: text] for sections (4 included), [-1: text] for the
  last section. A header without an end lasts until the next header. Text outside the headers is for what
  no header covers.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from .section_plan import Section, SectionPlan

Unit = Literal["sections", "seconds"]


class PromptRange(NamedTuple):
    """A stretch of the film; end None lasts to the end of the film. Negative section numbers count from its end."""

    start: float
    end: float | None
    unit: Unit

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"[{self.start:g}s-{'' if self.end is None else f'{self.end:g}s'}]"
        # as headers write it, with the last section included
        return f"[{self.start:g}{'' if self.end is None else f'-{self.end - 1:g}'}]"


class TimedPrompt(NamedTuple):
    """A text and where it holds; range None holds where no other one does."""

    text: str
    range: PromptRange | None


_ALMOST_HEADER = re.compile(r"\[\s*-?\d[\d\s.s-]*:")
_EPSILON = 1e-6  # of a section; ranges in seconds seldom meet section borders exactly

_HEADER = re.compile(
    r"\[\s*(?P<start>-?\d+(?:\.\d+)?)\s*(?P<unit>s?)\s*(?:(?P<dash>-)\s*(?P<end>\d+(?:\.\d+)?)?\s*s?\s*)?:(?P<text>[^\]]*)\]"
)


def parse_prompts(text: str) -> list[TimedPrompt]:
    """Text of the prompts widget -> prompts with ranges.

    Raises ValueError for empty text, an empty prompt, mixed units, inverted and overlapping ranges; whether ranges
    leave the film is for check_in_film, which knows the film.
    """
    if not text.strip():
        raise ValueError("The prompt list is empty; write at least one prompt.")
    headers = list(_HEADER.finditer(text))
    if not headers and not _ALMOST_HEADER.search(text):
        return _lines(text)
    timed = [TimedPrompt(match["text"].strip(), _range(match)) for match in headers]
    empty = next((prompt for prompt in timed if not prompt.text), None)
    if empty is not None:
        raise ValueError(f"The prompt of {empty.range} is empty; write its text after the colon or delete the header.")
    elsewhere = _HEADER.sub("\n", text).strip()
    if _ALMOST_HEADER.search(elsewhere):
        raise ValueError(
            f"'{_ALMOST_HEADER.findall(elsewhere)[0]}' is no range; write [0s-2s: text], [2: text], [2-4: text] or "
            "[-1: text]."
        )
    rest = [TimedPrompt(" ".join(elsewhere.split()), None)] if elsewhere else []
    ranges = [prompt.range for prompt in timed if prompt.range]
    if len({prompt_range.unit for prompt_range in ranges}) > 1:
        raise ValueError("The prompts mix seconds and section numbers; write all headers in one unit.")
    _check_overlaps(_placed([(r.start, r.end, r) for r in ranges if r.start >= 0], float("inf")))
    return rest + timed


def check_range(prompt_range: PromptRange) -> None:
    """Raises ValueError for a range that ends before it starts."""
    start, end, _ = prompt_range
    if end is not None and start >= 0 and end <= start:
        raise ValueError(f"The prompt range {prompt_range} ends before it starts; write the smaller number first.")


def check_in_film(ranges: Sequence[PromptRange], plan: SectionPlan) -> None:
    """Raises ValueError for ranges outside the film and for ranges that overlap in it."""
    count = len(plan.sections)
    placed = _in_film(ranges, plan)
    for start, _, prompt_range in placed:
        if not 0 <= start < count:
            raise ValueError(
                f"The prompt range {prompt_range} lies outside the film, whose sections are 0 to {count - 1} "
                f"({count * plan.section_seconds:.1f} s)."
            )
    _check_overlaps(placed)


def in_sections(prompt_range: PromptRange, plan: SectionPlan) -> tuple[float, float | None]:
    """Start and end of a range in sections of this film."""
    scale = plan.section_seconds if prompt_range.unit == "seconds" else 1.0
    start = prompt_range.start / scale
    if start < 0:
        start += len(plan.sections)
    return start, None if prompt_range.end is None else prompt_range.end / scale


def range_for(section: Section, ranges: Sequence[PromptRange], plan: SectionPlan, has_rest: bool) -> PromptRange | None:
    """The range that holds for a section: the one that covers most of it, the earlier of two equal ones.

    When none covers it: None if has_rest (prompts without a range take over), else the nearest earlier range
    (prompts cascade forward), else the first.
    """
    if not ranges:
        return None
    begin = plan.place(section)
    placed = _in_film(ranges, plan)
    best, best_cover = None, 0.0
    for start, end, prompt_range in placed:
        cover = min(end, begin + 1) - max(start, begin)
        if cover > best_cover + _EPSILON:
            best, best_cover = prompt_range, cover
    if best is not None or has_rest:
        return best
    earlier = [prompt_range for start, _, prompt_range in placed if start <= begin]
    return earlier[-1] if earlier else placed[0][2]


_Placed = tuple[float, float, PromptRange]


def _in_film(ranges: Sequence[PromptRange], plan: SectionPlan) -> list[_Placed]:
    return _placed([(*in_sections(r, plan), r) for r in dict.fromkeys(ranges)], float(len(plan.sections)))


def _placed(ranges: Sequence[tuple[float, float | None, PromptRange]], film_end: float) -> list[_Placed]:
    """(start, end, range) by start; an open range ends where the next one starts."""
    placed = sorted(ranges, key=lambda item: item[0])
    following = [start for start, _, _ in placed[1:]] + [film_end]
    return [
        (start, following[number] if end is None else end, prompt_range)
        for number, (start, end, prompt_range) in enumerate(placed)
    ]


def _check_overlaps(placed: Sequence[_Placed]) -> None:
    for (begin, end, first), (start, _, second) in pairwise(placed):
        if start < end - _EPSILON or start == begin:
            raise ValueError(f"The prompt ranges {first} and {second} overlap; end the first where the second starts.")


def _lines(text: str) -> list[TimedPrompt]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        return [TimedPrompt(lines[0], None)]
    ends: list[float | None] = [*range(1, len(lines)), None]
    return [TimedPrompt(line, PromptRange(k, ends[k], "sections")) for k, line in enumerate(lines)]


def _range(match: re.Match[str]) -> PromptRange:
    start = float(match["start"])
    if match["unit"] or "s" in match[0].split(":", 1)[0]:
        found = PromptRange(start, float(match["end"]) if match["end"] else None, "seconds")
    else:
        # a section range includes its last section; a lone negative number is that section
        end = float(match["end"]) + 1 if match["end"] else None
        found = PromptRange(start, end, "sections")
    check_range(found)
    if start < 0 and found.end is not None:
        header = match[0].split(":")[0]
        raise ValueError(f"The prompt range {header}] counts from the end of the film and takes one number.")
    if found.unit == "seconds" and start < 0:
        raise ValueError(f"The prompt range {found} starts before the film; seconds are 0 or more.")
    return found
