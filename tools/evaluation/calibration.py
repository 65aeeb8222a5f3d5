"""MagCache on a checkpoint that has no published ratios: measured on other films than those that are judged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, sample_sections, unipc_sampler
from framepack_pack.framepack_core.comfy_host.step_skipping import record_magnitudes, skip_steps
from framepack_pack.framepack_core.schedule import section_sigmas
from framepack_pack.framepack_core.skipping.magnitudes import MagnitudeTable
from framepack_pack.framepack_core.skipping.methods import METHODS

from .films import Order, Tools, draw_films, empty_history, section_prompts
from .variants import Variant

FILMS, SECTIONS, SEED = 8, 4, 1000


def patch_of(variant: Variant, order: Order, tools: Tools) -> Callable[[Any], Any]:
    """MODEL -> MODEL, the variant's, for films of this order; MagCache is calibrated first."""
    if not variant.magcache:
        return variant.patch
    return partial(with_magcache, tools=tools, order=order, preset=variant.magcache)


def with_magcache(model: Any, tools: Tools, order: Order, preset: str) -> Any:
    """A clone of MODEL with this preset of MagCache and the ratios of one section."""
    tables: list[MagnitudeTable] = []
    scenes, prompts = draw_films(FILMS, SECTIONS, SEED)
    history, _ = empty_history(tools, scenes, order)
    sampling = Sampling(unipc_sampler(), section_sigmas(history, order.steps), 1.0, 0.0)
    sample_sections(record_magnitudes(model, tables), section_prompts(tools, prompts), None, history, sampling, 1)
    return skip_steps(model, replace(METHODS[preset], table=tables[0]))
