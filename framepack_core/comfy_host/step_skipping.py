"""Step skipping as a patch of MODEL: settings on the patch, and an object for each run of a sampler with its state.

A run is one call of a guider's `sample`, so one section, whichever sampling node made it.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.patcher_extension
from torch import Tensor

from ..model.config import FramePackConfig
from ..packing import PackedHistory
from ..section_plan import Direction
from ..skipping.calibration import MagnitudeRun
from ..skipping.magcache import MagCache
from ..skipping.magnitudes import MagnitudeTable
from ..skipping.run import SKIPPER, Method, SkippingRun, StepReport, step_at
from .conditioning import check_framepack
from .native_model import HISTORY_KEY
from .step_sources import named_sigma

PATCH = "framepack_step_skipping"
STEPS_DONE = "framepack_steps_done"
"""Callback type of a MODEL: add_callback(STEPS_DONE, f) calls f(StepReport) after every run that may skip steps."""
FOREIGN_OPTIONS = {
    "rel_l1_thresh": "TeaCache of another pack",
    "magcache_thresh": "MagCache of another pack",
}
"""What the skippers of other packs leave in transformer_options (ComfyUI-TeaCache, ComfyUI-MagCache)."""

Wrappers = comfy.patcher_extension.WrappersMP
logger = logging.getLogger(__name__)


def skip_steps(model: Any, method: Method) -> Any:
    """A clone of MODEL that skips steps. Raises ValueError for another model or skipper, or a table that is not its."""
    _check_patchable(model)
    if isinstance(method, MagCache) and method.table is None and _config(model) != FramePackConfig():
        raise ValueError(
            "MagCache's published ratios were measured on the released FramePack checkpoints, and this model has other "
            "sizes. Connect ratios of FramePack Calibrate Skipping, or choose another method."
        )
    return _patched(model, SectionPatch(method.name, partial(SkippingRun, method), _tell))


def record_magnitudes(model: Any, tables: list[MagnitudeTable]) -> Any:
    """A clone of MODEL that skips nothing and adds a table of ratios to the list after every run."""
    _check_patchable(model)
    return _patched(model, SectionPatch("the calibration", _record, lambda run, _: tables.append(run.table())))


def _patched(model: Any, patch: "SectionPatch") -> Any:
    model = model.clone()
    model.add_wrapper_with_key(Wrappers.OUTER_SAMPLE, PATCH, patch)
    return model


class SectionPatch(NamedTuple):
    """OUTER_SAMPLE wrapper: makes a run and puts it where the transformer looks for it, until sampling ends."""

    name: str
    start: Callable[[tuple[float, ...], Direction], Any]
    done: Callable[[Any, Any], None]  # (run, MODEL) of a sampling that came to its end

    def __call__(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        guider = executor.class_obj
        _check_alone(guider.model_options)
        direction = _film_direction(guider.conds)
        if direction is None:  # no history: the model itself refuses that conditioning
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        levels = tuple(sigmas[:-1].tolist())
        run = self.start(levels, direction)
        transformer_options = guider.model_options["transformer_options"]  # the host's copy for this sampling
        transformer_options[SKIPPER] = run
        follow = _StepFollower(run, levels)
        comfy.patcher_extension.add_wrapper_with_key(Wrappers.PREDICT_NOISE, PATCH, follow, transformer_options)
        out = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        self.done(run, guider.model_patcher)
        return out


class _StepFollower(NamedTuple):
    """PREDICT_NOISE wrapper: tells the run which step of the schedule a call belongs to."""

    run: Any
    levels: tuple[float, ...]

    def __call__(self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, *args: Any, **kwargs: Any) -> Any:
        named = named_sigma(model_options.get("transformer_options", {}), sigma)
        self.run.begin(step_at(self.levels, float(sigma[0]) if named is None else named))  # float waits for the device
        return executor(x, sigma, model_options, *args, **kwargs)


def _record(levels: tuple[float, ...], _direction: Direction) -> MagnitudeRun:
    return MagnitudeRun(levels)


def _tell(run: SkippingRun, model: Any) -> None:
    report: StepReport = run.report()
    logger.info("FramePack %s", report)
    for callback in model.get_all_callbacks(STEPS_DONE):
        callback(report)


def _config(model: Any) -> FramePackConfig:
    return model.model.diffusion_model.config


def _check_patchable(model: Any) -> None:
    check_framepack(model)
    _check_alone(model.model_options)
    _refuse_second(*(patch.name for patch in model.get_wrappers(Wrappers.OUTER_SAMPLE, PATCH)))


def _check_alone(model_options: dict) -> None:
    """Raises ValueError where core's or another pack's skipper is on the model, before or behind ours."""
    options = model_options.get("transformer_options", {})
    names = [FOREIGN_OPTIONS[key] for key in FOREIGN_OPTIONS if key in options]
    if "easycache" in options:
        names.append(getattr(options["easycache"], "name", "EasyCache"))
    _refuse_second(*names)


def _refuse_second(*names: str) -> None:
    if names:
        raise ValueError(
            f"The model already has {names[0]}, and two that skip steps would skip on each other's results; take "
            "off one of the two nodes."
        )


def _film_direction(conds: dict[str, list[dict[str, Any]]]) -> Direction | None:
    """Of the film that is sampled, as its conditionings say."""
    packed: list[PackedHistory] = [
        entry[HISTORY_KEY] for entries in conds.values() for entry in entries if HISTORY_KEY in entry
    ]
    return packed[0].indices.direction if packed else None
