"""What is measured: one entry a row. Whoever builds a faster path adds a line here, a function from MODEL to MODEL."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as host_attention
from framepack_pack.framepack_core.comfy_host.attention_choice import OVERRIDE
from framepack_pack.framepack_core.comfy_host.fp8_attention import attend_in_fp8
from framepack_pack.framepack_core.comfy_host.step_skipping import skip_steps
from framepack_pack.framepack_core.history import History
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.framepack_core.skipping.methods import METHODS
from framepack_pack.tools.demo_world.scene import Scenes
from torch import Tensor

from .controls import reversed_sections, shifted_prompts, with_swapped_history, without_history
from .films import Order, Prompts, Tools, true_films, unchanged, vae_round_trip

FORWARD = Direction.FORWARD
USUAL = Order()
ALL = 1_000_000


class NotHereError(RuntimeError):
    """This host or machine lacks what a row needs."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    order: Order = USUAL
    sections: int | None = None  # None: as the command line says
    films: int = ALL  # at most
    frames: Callable[[Tools, Scenes], Tensor] | None = None  # for films that no transformer makes
    patch: Callable[[Any], Any] = unchanged  # MODEL -> MODEL; raises NotHereError
    magcache: str = ""  # a preset, which is calibrated first
    prompts: Callable[[Prompts], Prompts] = unchanged
    finish: Callable[[History], History] = unchanged


def easy_cache(threshold: float, node: str = "EasyCacheNode") -> Callable[[Any], Any]:
    """The host's step cache at this threshold. It decides for a whole batch of films at once."""

    def patch(model: Any) -> Any:
        try:
            from comfy_extras import nodes_easycache
        except ImportError as error:
            raise NotHereError("this ComfyUI has no EasyCache") from error
        output = getattr(nodes_easycache, node).execute(model, threshold, 0.15, 0.95, False)
        return getattr(output, "args", output)[0]

    return patch


def step_skipping(name: str) -> Callable[[Any], Any]:
    """The pack's own, with the method's settings."""
    return lambda model: skip_steps(model, METHODS[name])


def attention(name: str) -> Callable[[Any], Any]:
    """The host's attention function of this name, where its library is installed."""

    def patch(model: Any) -> Any:
        if not getattr(host_attention, f"{name.upper()}_ATTENTION_IS_AVAILABLE", True):
            raise NotHereError(f"{name} attention is not installed")
        function = getattr(host_attention, f"attention_{name}")
        model = model.clone()
        model.model_options["transformer_options"][OVERRIDE] = lambda _, *args, **kwargs: function(*args, **kwargs)
        return model

    return patch


def fp8_attention(model: Any) -> Any:
    """FramePack 8-bit Attention, though films of the demo are too short to gain from it."""
    try:
        return attend_in_fp8(model, shortest=1)
    except ValueError as error:
        raise NotHereError(str(error)) from error


VARIANTS = (
    # what is the best that can be: the judge on true films, and the VAE alone
    Variant("true films", frames=true_films),
    Variant("VAE alone", frames=vae_round_trip),
    # what the pack does
    Variant("backward"),
    Variant("forward", Order(FORWARD)),
    Variant("text to video", Order(has_start=False)),
    Variant("text to video, forward", Order(FORWARD, has_start=False)),
    Variant("end image", Order(has_end=True)),
    Variant("wired by hand", Order(by_hand=True)),
    Variant("wired by hand, forward", Order(FORWARD, by_hand=True)),
    # length
    Variant("12 sections", sections=12, films=16),
    Variant("12 sections, forward", Order(FORWARD), sections=12, films=16),
    Variant("50 sections", sections=50, films=8),
    Variant("50 sections, forward", Order(FORWARD), sections=50, films=8),
    # steps
    Variant("8 steps", Order(steps=8)),
    Variant("8 steps, forward", Order(FORWARD, steps=8)),
    Variant("12 steps", Order(steps=12)),
    Variant("12 steps, forward", Order(FORWARD, steps=12)),
    Variant("50 steps", Order(steps=50)),
    # samplers
    Variant("euler", Order(sampler="euler")),
    Variant("dpmpp_2m", Order(sampler="dpmpp_2m")),
    Variant("uni_pc", Order(sampler="uni_pc")),
    Variant("res_multistep", Order(sampler="res_multistep")),
    # guidance
    Variant("cfg 2", Order(cfg=2.0)),
    Variant("cfg 4", Order(cfg=4.0)),
    Variant("text to video, forward, cfg 2", Order(FORWARD, has_start=False, cfg=2.0)),
    # step caches
    Variant("EasyCache 0.05", patch=easy_cache(0.05)),
    Variant("EasyCache 0.2", patch=easy_cache(0.2)),
    Variant("LazyCache 0.2", patch=easy_cache(0.2, "LazyCacheNode")),
    Variant("MagCache quality", magcache="MagCache quality"),
    Variant("MagCache balanced", magcache="MagCache balanced"),
    Variant("MagCache balanced, forward", Order(FORWARD), magcache="MagCache balanced"),
    Variant("MagCache fast", magcache="MagCache fast"),
    Variant("TeaCache", patch=step_skipping("TeaCache")),
    Variant("first block", patch=step_skipping("first block")),
    # weights
    Variant("fp8_e4m3fn", Order(weight_dtype="fp8_e4m3fn")),
    Variant("fp8_e4m3fn_fast", Order(weight_dtype="fp8_e4m3fn_fast")),
    Variant("fp8_e5m2", Order(weight_dtype="fp8_e5m2")),
    Variant("fp8_e4m3fn_rowwise", Order(weight_dtype="fp8_e4m3fn_rowwise")),
    # attention
    Variant("attention pytorch", patch=attention("pytorch")),
    Variant("attention split", patch=attention("split")),
    Variant("attention sub_quad", patch=attention("sub_quad")),
    Variant("attention sage", patch=attention("sage")),
    Variant("attention flash", patch=attention("flash")),
    Variant("FramePack 8-bit Attention", patch=fp8_attention),
    # mistakes that must show
    Variant("MISTAKE: no history", patch=without_history),
    Variant("MISTAKE: no history, forward", Order(FORWARD), patch=without_history),
    Variant("MISTAKE: swapped history", patch=with_swapped_history),
    Variant("MISTAKE: swapped history, forward", Order(FORWARD), patch=with_swapped_history),
    Variant("MISTAKE: reversed sections", finish=reversed_sections),
    Variant("MISTAKE: shifted prompts", prompts=shifted_prompts),
)
