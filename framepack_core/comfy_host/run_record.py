"""What a run takes, written down while it runs: wrappers on a clone of MODEL, and an object that dies with the run.

Only clocks of the host are read, so nothing waits for the device that would not wait anyway.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfyui_version
import psutil
import torch
from torch import Tensor

from ..constants import PIXELS_PER_LATENT
from ..history import History
from ..planning.cost import count_tokens, forward_flops
from ..run_report import RunReport, SectionReport
from .attention_choice import attention_name
from .conditioning import Conditioning
from .section_denoiser import Sampling
from .step_skipping import STEPS_DONE

KEY = "framepack_run_record"
SETTLED = 2  # steps of a section that may wait for loading or compiling
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


class RunRecord:
    """Belongs to one run of the section loop."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._versions = versions()
        self._sections: list[SectionReport] = []
        self._begun: list[float] = []
        self._skipping: dict[int, Any] = {}  # number of the sampling, from 1 -> method, computed, steps

    def watch(self, model: Any) -> Any:
        """A clone of MODEL whose samplings are written down, one section each."""
        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, self._sample)
        model.add_callback(STEPS_DONE, self._take_skipping)
        return model

    def report(self, model: Any, positive: Conditioning, sampling: Sampling) -> RunReport:
        """The report, at the end of the run: the last section lasts until now. model, sampling: those of the run."""
        ends = [*self._begun[1:], time.perf_counter()]
        spans = [end - begun for begun, end in zip(self._begun, ends, strict=True)]
        sections = []
        for number, (section, span) in enumerate(zip(self._sections, spans, strict=True), start=1):
            skipping = self._skipping.get(number)
            if skipping is not None:
                section = replace(section, computed=skipping.computed, skipper=skipping.method)
            sections.append(replace(section, seconds=span))
        film, config = self._history, model.model.diffusion_model.config
        batch, height, width = film.shape
        text = max(entry[0].shape[1] for entry in positive)
        image = 0 if film.image_embeds is None else film.image_embeds.shape[1]
        size = {"width": width * PIXELS_PER_LATENT, "height": height * PIXELS_PER_LATENT}
        tokens = count_tokens(**size, window=film.plan.window, starts_with_image=film.start_latent is not None,
                              text=text, image=image).total  # fmt: skip
        forwards = batch * (1 if sampling.cfg == 1.0 else 2)
        return RunReport(
            film={**size, "batch": batch, "mode": film.plan.direction.value, "window": film.plan.window,
                  "sections": len(film.sections), "seed": film.seed},
            sampling={"steps": len(sampling.sigmas) - 1, "cfg": sampling.cfg,
                      "sampler": _sampler_name(sampling.sampler), "forwards_per_step": forwards, "tokens": tokens,
                      "tflop_per_step": forwards * forward_flops(config, tokens) / 1e12},
            versions=self._versions,
            card=card_name(model.load_device),
            attention=attention_name(
                model.load_device, model.model.manual_cast_dtype or model.model.get_dtype(), tokens,
                config.attention_head_dim, model.model_options.get("transformer_options", {}),
            ),
            sections=tuple(sections),
        )  # fmt: skip

    def _take_skipping(self, skipping: Any) -> None:
        self._skipping[len(self._begun)] = skipping  # told by a wrapper outside of ours, so after it

    def _sample(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any = None,
        callback: Callable[..., None] | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """OUTER_SAMPLE wrapper, around loading and sampling of a section."""
        patcher, marks = executor.class_obj.model_patcher, []
        section = self._history.plan.sections[self._history.draws + len(self._sections)]

        def after_step(*step: Any) -> None:
            if callback is not None:
                callback(*step)
            marks.append(time.perf_counter())

        on_card = patcher.load_device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats(patcher.load_device)
        self._begun.append(time.perf_counter())
        out = executor(noise, latent, sampler, sigmas, mask, after_step, *args, **kwargs)
        free, total = torch.cuda.mem_get_info(patcher.load_device) if on_card else (0, 0)
        self._sections.append(
            SectionReport(
                name=self._history.plan.name(section),
                seconds=0.0,  # known when the next one begins
                steps=len(sigmas) - 1,
                step_seconds=_mean_gap(marks[SETTLED - 1 :]),
                peak_vram=torch.cuda.max_memory_allocated(patcher.load_device) if on_card else None,
                card_used=total - free if on_card else None,
                ram=psutil.Process().memory_info().rss,
                weights=patcher.model_size(),
                weights_on_card=patcher.loaded_size(),
            )
        )
        return out


def versions() -> dict[str, str]:
    """Of the pack, the host and torch."""
    lines = PYPROJECT.read_text(encoding="utf-8").splitlines() if PYPROJECT.is_file() else []
    pack = next((line.split('"')[1] for line in lines if line.startswith("version = ")), "unknown")
    return {"pack": pack, "ComfyUI": comfyui_version.__version__, "torch": torch.__version__}


def card_name(device: torch.device) -> str:
    """The device as its driver names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    return getattr(function, "__name__", type(function).__name__).lstrip("_").removeprefix("sample_")


def _mean_gap(marks: list[float]) -> float | None:
    """Mean seconds between marks; None for fewer than three, whose mean says little."""
    return (marks[-1] - marks[0]) / (len(marks) - 1) if len(marks) > 2 else None
