"""From the host's conditioning to StepInputs and SectionInputs: who keeps what, and for how long.

A StepTable belongs to a film and travels in transformer_options. A section that is wired by hand has none there and
uses that of its own conditioning, which lives as long as one call of a sampler.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_management
from torch import Tensor

from ..model.pieces import mlp_piece
from ..model.step_table import StepTable, join_sections, join_steps
from ..model.transformer import FramePackTransformer, SectionInputs, StepInputs
from .shelf import holder

HISTORY_RATES = {"history_1x": 1, "history_2x": 2, "history_4x": 4}
TABLE_KEY = "framepack_step_table"
"""In transformer_options: the StepTable of a film."""
STEP_KEY = "framepack_step"
"""In transformer_options: (sigma as a tensor, the same as a number), from a sampler that knows it without asking the
device. It holds for a call whose "sigmas" is that very tensor: wrappers may put another in its place."""


def named_sigma(options: dict, sigmas: Any) -> float | None:
    """The noise level of a call with these sigmas as a number, where its sampler names it; waits for nothing."""
    tensor, sigma = options.get(STEP_KEY, (None, None))
    return None if tensor is None or tensor is not sigmas else sigma


class Source:
    """One conditioning entry in one call of a sampler: which prompts it has, and what is made from it once."""

    def __init__(self, keys: tuple[str, ...], lengths: tuple[int, ...]) -> None:
        self.keys = keys  # content of each prompt, one per sample; fewer are repeated
        self.lengths = lengths  # valid tokens of each prompt
        self.table = StepTable()
        self.sections: dict[Hashable, SectionInputs] = {}  # by shape and device of the latents
        self.schedule: dict[float, float] | None = None  # sigma -> timestep


class CONDSources(comfy.conds.CONDConstant):
    """A tuple of Source, one for each entry that the host puts in a batch."""

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, CONDSources)

    def concat(self, others: list[Any]) -> tuple[Source, ...]:
        return sum((other.cond for other in others), self.cond)


def source_of(context: Tensor, y: Tensor, guidance: Tensor, image_embeds: Tensor | None, lengths: Any) -> Source:
    """The Source of an entry; reads its tensors once, so call it while they are still on the CPU."""
    parts = [part for part in (context, y, guidance, image_embeds) if part is not None]
    count = max(part.shape[0] for part in parts)
    lengths = (context.shape[1],) * count if lengths is None else tuple(lengths[i % len(lengths)] for i in range(count))
    keys = []
    for i in range(count):
        digest = hashlib.blake2b()
        for part in (context[:, : lengths[i]], *parts[1:]):
            row = part[i % part.shape[0]].detach().float().cpu().contiguous()
            digest.update(str(tuple(row.shape)).encode())
            digest.update(row.numpy().data)
        keys.append(digest.hexdigest())
    return Source(tuple(keys), lengths)


class Call(NamedTuple):
    """One call of the model by the host."""

    model: Any  # FramePackModel
    x: Tensor  # [B, C, T, H, W] in the compute dtype
    sigma: Tensor  # [B]
    options: dict  # transformer_options
    sources: tuple[Source, ...]
    conds: dict[str, Any]  # tensors [B, ...], as extra_conds named them; context among them

    @property
    def transformer(self) -> FramePackTransformer:
        return self.model.diffusion_model

    @property
    def rows(self) -> int:
        """Samples of each source."""
        return self.x.shape[0] // len(self.sources)

    @property
    def hooked(self) -> bool:
        """Weights that hooks patch may change from step to step, and nothing made from them is kept."""
        return self.model.current_patcher.current_hooks is not None

    def timesteps(self, sigmas: Tensor) -> list[float]:
        """As the transformer rounds them. Waits for the device."""
        return self.model.model_sampling.timestep(sigmas).float().to(self.x.dtype).tolist()


def parts_of_step(call: Call) -> dict[str, Any]:
    """Arguments of FramePackTransformer.velocity, looked up where they were made before."""
    step, section = step_inputs(call), section_inputs(call)
    tokens = section.rotation.cos.shape[2] + step.prompt.shape[1] + (0 if step.image is None else step.image.shape[1])
    batch = call.x.shape[0]
    patcher = call.model.current_patcher
    # the newer host's counts what it would take from weights, which give way there
    free = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)(call.x.device)
    piece = mlp_piece(call.transformer.config, batch * tokens, call.x.element_size(), free)
    return {"step": step, "section": section, "mlp_piece": max(1, piece // batch)}


def step_inputs(call: Call) -> StepInputs:
    """StepInputs of all samples, each made alone, so that its bits do not depend on the batch."""
    patcher = call.model.current_patcher
    schedule, timestep = _levels(call)
    table = call.options.get(TABLE_KEY, call.sources[0].table)
    if call.hooked:
        table, schedule = StepTable(), []
    steps = []
    for at in range(call.x.shape[0]):
        source, row = call.sources[at // call.rows], at % call.rows
        length = source.lengths[row % len(source.lengths)]
        key = (source.keys[row % len(source.keys)], patcher.patches_uuid, call.x.dtype, call.x.device)

        def make(timesteps: Sequence[float], at: int = at, length: int = length) -> list[StepInputs]:
            return _make(call, timesteps, at, length)

        steps.append(table.look_up(key, timestep, schedule, make))
    return join_steps(steps)


def section_inputs(call: Call) -> SectionInputs:
    """SectionInputs of all samples; those of a source are made at its first step."""
    parts = []
    for i, source in enumerate(call.sources):
        x = call.x[i * call.rows : (i + 1) * call.rows]
        key = (x.shape, x.device)
        made = None if call.hooked else source.sections.get(key)
        if made is None:
            groups = (call.conds.get(name) for name in HISTORY_RATES)
            history = tuple(
                None if group is None else group[i * call.rows : (i + 1) * call.rows].to(x) for group in groups
            )
            made = source.sections[key] = call.transformer.section_inputs(x, call.conds["frame_indices"], history)
        parts.append(made)
    return join_sections(parts)


def _make(call: Call, timesteps: Sequence[float], at: int, length: int) -> list[StepInputs]:
    """StepInputs [1, ...] of the sample `at`, at all timesteps."""

    def row(name: str) -> Any:
        tensor = call.conds.get(name)
        return None if tensor is None else tensor[at : at + 1].to(call.x)

    context: Tensor = row("context")[:, :length]
    levels = [call.x.new_full((1,), timestep) for timestep in timesteps]
    hold = holder(call.model.current_patcher, call.x.device)
    return call.transformer.step_inputs(levels, row("guidance"), row("y"), context, row("image_embeds"), hold=hold)


def _levels(call: Call) -> tuple[list[float], float]:
    """Timesteps of the schedule, sigma 0 left out, and that of this call.

    The schedule is read from the device once a section. So is a sigma that its sampler does not name.
    """
    first, sigmas = call.sources[0], call.options.get("sample_sigmas")
    if first.schedule is None:
        first.schedule = {}
        if sigmas is not None:
            first.schedule = dict(zip(sigmas.tolist(), call.timesteps(sigmas), strict=True))
    named = named_sigma(call.options, call.options.get("sigmas"))
    timestep = first.schedule[named] if named in first.schedule else call.timesteps(call.sigma[:1])[0]
    return [known for sigma, known in first.schedule.items() if sigma > 0], timestep
