"""The host's samplers as the `denoise` of the section loop, with progress, previews and interrupts."""

import logging
from contextlib import nullcontext
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..generate import Denoise, check_finite, generate
from ..guidance import rescaled_guidance
from ..history import History, due_section, section_shape
from ..model.step_table import StepTable
from ..packing import PackedHistory
from ..schedule import section_noise
from ..section_plan import Section
from ..unipc import Solver, sample_flow_unipc
from .conditioning import Conditioning, check_conditioning, check_model, section_conditioning
from .early_look import EarlyLook
from .step_sources import STEP_KEY, TABLE_KEY

logger = logging.getLogger(__name__)


class Sampling(NamedTuple):
    """How sections are sampled."""

    sampler: Any  # SAMPLER
    sigmas: Tensor  # [steps + 1]
    cfg: float
    guidance_rescale: float


class SectionNoise(NamedTuple):
    """A NOISE socket's value that draws from the film's noise stream."""

    history: History

    @property
    def seed(self) -> int:
        return self.history.seed

    def generate_noise(self, latent: dict) -> Tensor:
        """Noise of the history's next section. Raises ValueError for a latent of another shape."""
        shape, expected = tuple(latent["samples"].shape), section_shape(self.history)
        if shape != expected:
            raise ValueError(f"The latent is {shape}, the next section {expected}; use the one of Apply History.")
        return section_noise(self.history)


def unipc_sampler(solver: Solver = "bh1") -> Any:
    """Our flow-UniPC as a SAMPLER."""
    return comfy.samplers.KSAMPLER(_sample_unipc, {"solver": solver})


def _sample_unipc(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool | None, solver: Solver
) -> Tensor:
    """sample_flow_unipc, with every noise level also given as a number: no step has to ask the device for it."""
    levels = iter(sigmas.tolist())  # each is evaluated once, in order

    def named(x: Tensor, sigma: Tensor, model_options: dict | None = None, **kwargs: Any) -> Tensor:
        given = model_options or {}
        options = {**given.get("transformer_options", {}), STEP_KEY: (sigma, next(levels))}
        return model(x, sigma, model_options={**given, "transformer_options": options}, **kwargs)

    return sample_flow_unipc(named, x, sigmas, extra_args, callback, disable, solver)


def check_sampling(
    model: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    history: History,
    cfg: float,
    guidance_rescale: float = 0.0,
) -> None:
    """Everything that can be refused before weights are loaded. Raises ValueError."""
    conditionings = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
    for name, conditioning in conditionings.items():
        check_conditioning(conditioning, history, name)
    check_model(model, conditionings, history)
    if cfg != 1.0 and negative is None:
        raise ValueError(f"cfg is {cfg}, which needs a negative conditioning; connect one, or set cfg to 1.")
    if _rescales(cfg, guidance_rescale) and "sampler_cfg_function" in model.model_options:
        raise ValueError(
            "The model already has a cfg function from another node (RescaleCFG or the like), which guidance_rescale "
            "would replace; set guidance_rescale to 0 or take that node off."
        )
    due_section(history)  # refuses a film that is whole


def sample_sections(
    model: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    history: History,
    sampling: Sampling,
    sections: int,
    look: EarlyLook | None = None,
) -> History:
    """The history with up to `sections` more, and the memory of sampling given back however it ends."""
    sections = min(sections, len(history.sections) - history.draws)
    logger.info(
        "FramePack: %d of %d %s sections, %d latent frames each, %d steps",
        sections,
        len(history.sections),
        history.plan.direction.value,
        history.plan.window,
        len(sampling.sigmas) - 1,
    )
    try:
        with look.during(history, sections) if look else nullcontext() as on_section:
            denoise = host_denoise(model, positive, negative, history, sampling, sections, look)
            return generate(history, denoise, sections, on_section)
    finally:
        comfy.model_management.soft_empty_cache()


def host_denoise(
    model: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    history: History,
    sampling: Sampling,
    sections: int,
    look: EarlyLook | None = None,
) -> Denoise:
    """The callable for framepack_core.generate: one guider run of the host per section.

    Each section is a sample() call of its own, so that caches of model patches start afresh.
    """
    steps = len(sampling.sigmas) - 1
    progress = _Progress(model, history, steps, sections * steps, look)
    table = StepTable()
    if _rescales(sampling.cfg, sampling.guidance_rescale):
        model = model.clone()
        model.set_model_sampler_cfg_function(rescaled_guidance(sampling.guidance_rescale))

    def denoise(section: Section, packed: PackedHistory, noise: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        table.next_section()
        guider = comfy.samplers.CFGGuider(model)
        options = guider.model_options
        guider.model_options = {**options, "transformer_options": {**options["transformer_options"], TABLE_KEY: table}}
        conds = {"positive": section_conditioning(positive, history, section, packed)}
        if negative is not None:
            conds["negative"] = section_conditioning(negative, history, section, packed)
        guider.inner_set_conds(conds)
        guider.set_cfg(sampling.cfg)
        judge = _Judge(history.plan.name(section))
        latents = guider.sample(
            noise,
            torch.zeros_like(noise),
            sampling.sampler,
            sampling.sigmas.clone(),  # core's uni_pc writes into them
            callback=progress.callback(section, judge),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=history.seed,
        )
        judge.confirm()
        return latents

    return denoise


def _rescales(cfg: float, guidance_rescale: float) -> bool:
    return guidance_rescale > 0 and cfg != 1.0


class _Progress:
    """One bar over all sections and steps, with the section in the making as preview."""

    def __init__(self, model: Any, history: History, steps: int, total: int, look: EarlyLook | None) -> None:
        self.look = look
        self.first = history.draws
        self.steps = steps
        self.bar = comfy.utils.ProgressBar(total)
        self.total = total
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(self, section: Section, judge: "_Judge"):
        done = (section.number - self.first) * self.steps

        def after_step(step: int, denoised: Tensor, _x: Tensor, _total_steps: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            judge.after_step(denoised, step + 1)
            preview = None
            if self.previewer:
                preview = self.previewer.decode_latent_to_preview_image("JPEG", film_strip(denoised))
            if preview and self.look:
                preview = self.look.above(preview)
            self.bar.update_absolute(done + step + 1, self.total, preview)

        return after_step


class _Judge:
    """check_finite for the steps of a section. On a CUDA device a step is judged while the next one runs."""

    def __init__(self, section_name: str) -> None:
        self.section_name = section_name
        self.pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def after_step(self, denoised: Tensor, step: int) -> None:
        """step counts from 1."""
        self.confirm()
        if not denoised.is_cuda:
            check_finite(denoised, self.section_name, step)
            return
        largest = torch.empty((), pin_memory=True)
        largest.copy_(denoised.abs().amax(), non_blocking=True)  # NaN and infinity come through
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(denoised.device))
        self.pending = (step, largest, copied)

    def confirm(self) -> None:
        """Judge the step that is left, if there is one."""
        if self.pending is None:
            return
        (step, largest, copied), self.pending = self.pending, None
        copied.synchronize()
        check_finite(largest, self.section_name, step)


def film_strip(latents: Tensor) -> Tensor:
    """Frames of the first sample side by side, [B, C, T, H, W] -> [1, C, 1, H, T * W]; previewers show one frame."""
    frames = latents[:1].movedim(2, 3)  # [1, C, H, T, W]
    return frames.flatten(3).unsqueeze(2)
