"""Training examples: sections cut from clips, with the history that inference would have when it makes them.

Nothing is packed here. A batch of examples is a batch of films that have been made up to one section, as a History
whose tensors lie where the clips are, and framepack_core.packing packs it; so plan, padding, zeros and indices are
those of inference. The frame indices of one call of the transformer are shared by its samples, hence one layout per
batch, and one length of prompt: masks would cost the fast attention kernels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import LATENT_SCALE
from ..history import VERSION, History
from ..packing import PackedHistory, pack_history
from ..section_plan import Direction, Section, SectionPlan, plan_backward, plan_forward
from .clips import Clips, Prompts
from .generators import Generators
from .velocity import Conditions


class Layout(NamedTuple):
    """One section of a plan: what the examples of a batch have in common."""

    plan: SectionPlan
    section: Section


class Cut(NamedTuple):
    """Where B examples of one layout come from; all on the CPU, [B]."""

    clips: Tensor
    begins: Tensor  # the section of the clip at which its film begins
    wordings: Tensor


class Batch(NamedTuple):
    """Examples of one layout."""

    conditions: Conditions
    latents: Tensor  # [B, 16, window, h, w] float32, unscaled: what is to be made


class Given(NamedTuple):
    """Which conditions a batch has; without a start image it is text-to-video."""

    text: bool = True
    start: bool = True
    end: bool = False


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn. Chances are 0..1 and hold for a whole batch, except noisy_histories (samples)."""

    layouts: tuple[tuple[Layout, ...], ...]  # a step's batches take turns among these, say directions; any is the first
    batch: int = 64  # examples of one layout
    batches: int = 4  # layouts per step
    drop_text: float = 0.1
    drop_start: float = 0.1
    give_end: float = 0.0
    text_alone: float = 0.0  # of batches in which a film's first made section sees nothing but its prompt
    noisy_histories: float = 0.7
    history_noise: float = 0.1  # most of it, as a part of the spread of scaled latents


def usual_layouts(direction: Direction, sections: int, window: int) -> tuple[Layout, ...]:
    """Every section of every film of up to this many sections, each once.

    Backward sections differ with the length of their film (padding, number of sections made), forward ones do not.
    """
    plan_of = {Direction.BACKWARD: plan_backward, Direction.FORWARD: plan_forward}[direction]
    plans = [plan_of(count, window) for count in range(1, sections + 1)]
    layouts: dict[Section, Layout] = {}
    for plan in plans:
        for section in plan.sections:
            layouts.setdefault(section, Layout(plan, section))
    return tuple(layouts.values())


class CutIndex:
    """Which examples of a set can stand in one batch, found once for each place in a film and kept."""

    def __init__(self, clips: Clips, prompts: Prompts) -> None:
        self.clips, self.prompts = clips, prompts
        self._known: dict[tuple[int, int], _Alike] = {}

    def draw(self, layout: Layout, batch: int, generator: torch.Generator) -> Cut:
        """See draw_cut."""
        place = len(layout.plan.sections), layout.plan.place(layout.section)
        if place not in self._known:
            self._known[place] = _find_alike(self.clips, self.prompts, layout)
        usable, shape, by_length = self._known[place]
        if not len(usable):
            raise ValueError(
                f"No clip has {place[0]} sections; the longest has {int(self.clips.sections.max())}. "
                "Train on layouts of shorter films, or on longer clips."
            )
        alike = by_length[int(usable[_below(len(usable), generator)])]
        chosen = alike[torch.randint(len(alike), (batch,), generator=generator)]
        return Cut(*torch.unravel_index(chosen, shape))


def draw_batches(
    clips: Clips, prompts: Prompts, drawing: Drawing, generators: Generators, index: CutIndex | None = None
) -> list[Batch]:
    """The batches of one training step; an index kept from step to step saves milliseconds with thousands of clips.

    Raises ValueError when no clip is long enough for a layout.
    """
    index = index or CutIndex(clips, prompts)
    out = []
    first = _below(len(drawing.layouts), generators.choices)
    for number in range(first, first + drawing.batches):
        layouts = drawing.layouts[number % len(drawing.layouts)]
        text_alone = float(torch.rand((), generator=generators.choices)) < drawing.text_alone
        if text_alone:
            layouts = tuple(layout for layout in layouts if layout.section.number == 0)
        layout = layouts[_below(len(layouts), generators.choices)]
        cut = index.draw(layout, drawing.batch, generators.choices)
        given = _draw_given(clips, layout, cut, drawing, generators.choices)
        given = Given(start=False) if text_alone else given
        history = film_so_far(clips, layout, cut, given)
        noisy = add_drift(history, drawing.noisy_histories, drawing.history_noise, generators.noise)
        out.append(make_batch(clips, prompts, layout, cut, given, noisy))
    return out


def draw_cut(clips: Clips, prompts: Prompts, layout: Layout, batch: int, generator: torch.Generator) -> Cut:
    """Examples whose prompts have one length; over many draws each (clip, begin, wording) is as likely as any other.

    Raises ValueError when no clip is long enough.
    """
    return CutIndex(clips, prompts).draw(layout, batch, generator)


def make_batch(
    clips: Clips, prompts: Prompts, layout: Layout, cut: Cut, given: Given, history: History | None = None
) -> Batch:
    """Examples as the model sees them; history stands in for the true film so far."""
    device = clips.latents.device
    history = film_so_far(clips, layout, cut, given) if history is None else history
    place = layout.plan.place(layout.section)
    rows = clips.texts[cut.clips, cut.begins + place, cut.wordings]
    rows = rows if given.text else torch.full_like(rows, prompts.empty)
    length = int(prompts.lengths[rows[0]])
    rows = rows.to(device, non_blocking=True)
    conditions = Conditions(
        packed=pack_there(history, layout.section, device),
        context=prompts.features[rows, :length],
        pooled=prompts.pooled[rows],
        image_embeds=history.image_embeds,
    )
    return Batch(conditions, read_section(clips, cut, place, layout.plan.window))


def film_so_far(clips: Clips, layout: Layout, cut: Cut, given: Given) -> History:
    """The films at the moment before their section is made, on the device of the clips.

    Only the sections in sight are read. They have all been made by then, since plans look one way.
    """
    plan, section = layout
    streams = (section.history_1x, section.history_2x, section.history_4x)
    seen = {frame // plan.window for stream in streams for frame in stream.frames}
    sections = [
        read_section(clips, cut, place, plan.window) if place in seen else None for place in range(len(plan.sections))
    ]
    device = clips.latents.device
    rows, begins = cut.clips.to(device, non_blocking=True), cut.begins.to(device, non_blocking=True)
    height, width = clips.latents.shape[-2:]
    return History(
        version=VERSION,
        plan=plan,
        seed=0,
        shape=(len(cut.clips), height, width),
        sections=tuple(sections),
        start_latent=_still(clips, rows, begins) if given.start else None,
        end_latent=_still(clips, rows, begins + len(plan.sections)) if given.end else None,
        image_embeds=clips.vision[rows, begins] if given.start else None,
    )


def add_drift(history: History, share: float, most: float, generator: torch.Generator) -> History:
    """Noise on the sections made, of 0 to `most` times the spread of latents, in this share of the films.

    Inference looks back at its own mistakes, training at the truth; the images stay as they are.
    """
    device, batch = generator.device, history.shape[0]
    level = torch.rand(batch, generator=generator, device=device) * (most / LATENT_SCALE)
    level = level * (torch.rand(batch, generator=generator, device=device) < share)
    level = level.view(-1, 1, 1, 1, 1)
    sections = [
        None if made is None else made + level * torch.randn(made.shape, generator=generator, device=device)
        for made in history.sections
    ]
    return history._replace(sections=tuple(sections))


def pack_there(history: History, section: Section, device: torch.device) -> PackedHistory:
    """packing.pack_history on a device, where the history's tensors, if it has any, already lie."""
    with device:
        return pack_history(history, section)


def read_section(clips: Clips, cut: Cut, place: int, window: int) -> Tensor:
    """Section `place` of each film, [B, 16, window, h, w] float32."""
    device = clips.latents.device
    frames = 1 + (cut.begins.unsqueeze(1) + place) * window + torch.arange(window)  # [B, window]
    rows = cut.clips.unsqueeze(1)
    picked = clips.latents[rows.to(device, non_blocking=True), :, frames.to(device, non_blocking=True)]
    return picked.transpose(1, 2).float()  # from [B, window, 16, h, w]


def _still(clips: Clips, rows: Tensor, borders: Tensor) -> Tensor:
    return clips.stills[rows, borders].unsqueeze(2).float()  # [B, 16, 1, h, w]


class _Alike(NamedTuple):
    """Examples as numbers in a table of [clips, begins, wordings]."""

    usable: Tensor  # prompt length of each example that fits into its clip
    shape: torch.Size  # of the table
    by_length: dict[int, Tensor]  # numbers of the examples with prompts of this length


def _find_alike(clips: Clips, prompts: Prompts, layout: Layout) -> _Alike:
    lengths = _prompt_lengths(clips, prompts, layout)
    flat = lengths.flatten()
    usable = flat[flat > 0]
    by_length = {length: (flat == length).nonzero().squeeze(1) for length in usable.unique().tolist()}
    return _Alike(usable, lengths.shape, by_length)


def _prompt_lengths(clips: Clips, prompts: Prompts, layout: Layout) -> Tensor:
    """Tokens of the section's prompt in films that begin at any still, [N, begins, V]; 0 where they do not fit."""
    count, place = len(layout.plan.sections), layout.plan.place(layout.section)
    begins = max(min(clips.stills.shape[1], clips.texts.shape[1] - count + 1), 0)
    fits = torch.arange(begins) + count <= clips.sections.unsqueeze(1)  # [N, begins]
    return prompts.lengths[clips.texts[:, place : place + begins]] * fits.unsqueeze(-1)


def _draw_given(clips: Clips, layout: Layout, cut: Cut, drawing: Drawing, generator: torch.Generator) -> Given:
    text, start, end = torch.rand(3, generator=generator).tolist()
    has_end = int(cut.begins.max()) + len(layout.plan.sections) < clips.stills.shape[1]
    return Given(text >= drawing.drop_text, start >= drawing.drop_start, has_end and end < drawing.give_end)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
