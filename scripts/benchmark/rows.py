"""What the bench measures: one entry per row. A new variant of ours is a line here that names what it does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class MissingPieceError(Exception):
    """A row whose piece is not on this machine or in this checkout; the message says which."""


@dataclass(frozen=True)
class Row:
    """kind: "ours", "diffusers" or "original" (a checkout given with --original); the rest has its default there."""

    kind: str
    what: str
    weight_dtype: str = "default"  # ours: of Load FramePack Model
    patch: Callable[[Any], Any] | None = None  # ours: MODEL -> MODEL
    budget_gib: float | None = None  # ours: VRAM left on the card, everything included
    measure: str = "forward"  # or another of ours.MEASURES
    compiled: bool = False
    swapped: bool = False  # original: DynamicSwap, weights on the CPU
    dtype: str = "bfloat16"
    compares: bool = True  # outputs against the float32 reference


def step_skipping(model: Any) -> Any:
    """MagCache, balanced, with the published ratios."""
    from framepack_pack.framepack_core.comfy_host.step_skipping import skip_steps
    from framepack_pack.framepack_core.skipping.methods import METHODS

    return skip_steps(model, METHODS["MagCache balanced"])


def plain_maths(model: Any) -> Any:
    """Without the fused kernels between matrix products."""
    from framepack_pack.framepack_core.model.elementwise import unfused

    def call(executor: Any, *args: Any, **conds: Any) -> Any:
        with unfused():
            return executor(*args, **conds)

    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "plain maths", call)
    return model


def fp8_attention(model: Any) -> Any:
    """FramePack 8-bit Attention."""
    from framepack_pack.framepack_core.comfy_host.fp8_attention import attend_in_fp8

    return attend_in_fp8(model)


ROWS: dict[str, Row] = {
    "original": Row("original", "the original's class, eager"),
    "diffusers": Row("diffusers", "diffusers, eager"),
    "diffusers-compiled": Row("diffusers", "diffusers, every block compiled", compiled=True),
    "original-swap": Row("original", "the original, DynamicSwap, nothing resident (its 6 GB mode)", swapped=True),
    "ours": Row("ours", "ours, exact bf16"),
    "ours-unfused": Row("ours", "ours, without kernels", patch=plain_maths),
    "ours-unfused-4g": Row("ours", "ours, without kernels, 4 GiB", patch=plain_maths, budget_gib=4),
    "ours-fp8": Row("ours", "ours, fp8 row-wise", weight_dtype="fp8_e4m3fn_rowwise"),
    "ours-fp8-attention": Row(
        "ours", "ours, fp8 row-wise and 8-bit attention", weight_dtype="fp8_e4m3fn_rowwise", patch=fp8_attention
    ),
    "ours-fp8-tensorwise": Row("ours", "ours, the host's fp8_e4m3fn_fast", weight_dtype="fp8_e4m3fn_fast"),
    "ours-int8": Row("ours", "ours, int8_convrot by the host", weight_dtype="int8_convrot"),
    "section": Row("ours", "ours, exact, a section of 25 steps", measure="section", compares=False),
    "ours-magcache": Row("ours", "ours + MagCache balanced", patch=step_skipping, measure="section", compares=False),
    "ours-fp8-magcache": Row(
        "ours", "ours, fp8 row-wise + MagCache balanced", weight_dtype="fp8_e4m3fn_rowwise", patch=step_skipping,
        measure="section", compares=False,
    ),
    **{f"ours-{gib}g": Row("ours", f"ours, bf16, {gib} GiB of VRAM", budget_gib=gib) for gib in (24, 12, 8, 6, 4)},
    **{
        f"ours-fp8-{gib}g": Row("ours", f"ours, fp8, {gib} GiB", weight_dtype="fp8_e4m3fn_rowwise", budget_gib=gib)
        for gib in (12, 8, 6, 4)
    },
    "profile": Row("ours", "ours, profiled", measure="profile", compares=False),
    "profile-8g": Row("ours", "ours, 8 GiB of VRAM, profiled", budget_gib=8, measure="profile", compares=False),
    "profile-fp8": Row(
        "ours", "ours, fp8 row-wise, profiled", weight_dtype="fp8_e4m3fn_rowwise", measure="profile", compares=False
    ),
    "profile-fp8-4g": Row(
        "ours", "ours, fp8, 4 GiB, profiled", weight_dtype="fp8_e4m3fn_rowwise", budget_gib=4, measure="profile",
        compares=False,
    ),
    "drift": Row("ours", "ours, 12 sections of 2 steps", measure="films", compares=False),
    "new-prompt": Row("ours", "ours, first forward of a new prompt (step tables)", measure="prompt", compares=False),
    "switches": Row("ours", "ours, what must not change a film, and waits", measure="switches", compares=False),
}  # fmt: skip

REFERENCE = Row("diffusers", "diffusers in float32, what the errors are against", dtype="float32", measure="reference")
