"""A tiny transformer with sharp attention, diffusers' class with the same weights, and inputs for both."""

from typing import Any, NamedTuple

import torch
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.packing import FrameIndices
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward
from torch import Tensor

CONFIG = FramePackConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=2,
    mlp_dim=512,
    text_embed_dim=48,
    pooled_projection_dim=24,
    image_proj_dim=36,
    rope_axes_dim=(4, 14, 14),
)
GUIDANCE = 10000.0


class Inputs(NamedTuple):
    """Arguments of our forward, by name."""

    x: Tensor
    timestep: Tensor
    context: Tensor
    y: Tensor
    guidance: Tensor
    frame_indices: FrameIndices
    history_1x: Tensor
    history_2x: Tensor
    history_4x: Tensor
    image_embeds: Tensor
    attention_mask: Tensor


def oracle() -> Any:
    """diffusers' transformer; q/k norm weights about 1.5, so that position errors show."""
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    torch.manual_seed(0)
    model = HunyuanVideoFramepackTransformer3DModel(
        num_attention_heads=CONFIG.num_attention_heads,
        attention_head_dim=CONFIG.attention_head_dim,
        num_layers=CONFIG.num_layers,
        num_single_layers=CONFIG.num_single_layers,
        num_refiner_layers=CONFIG.num_refiner_layers,
        text_embed_dim=CONFIG.text_embed_dim,
        pooled_projection_dim=CONFIG.pooled_projection_dim,
        image_proj_dim=CONFIG.image_proj_dim,
        rope_axes_dim=CONFIG.rope_axes_dim,
        has_image_proj=True,
        has_clean_x_embedder=True,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")):
                parameter.copy_(1.5 + 0.1 * torch.randn_like(parameter))
    return model.eval()


def ours(reference: Any, dtype: torch.dtype = torch.float32) -> FramePackTransformer:
    """Our transformer with the oracle's weights, loaded strictly."""
    model = FramePackTransformer(CONFIG)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.to(dtype).eval()


def layout(kind: str) -> FrameIndices:
    """Indices of a real plan: "backward P" with P = 0..3, or "forward"."""
    if kind == "forward":
        section = plan_forward(1, 9).sections[0]
    else:
        padding = int(kind.split()[1])
        section = plan_backward(padding + 1, 9).sections[0]
    return FrameIndices(
        tuple(section.target.indices),
        (section.start_index, *section.history_1x.indices),
        tuple(section.history_2x.indices),
        tuple(section.history_4x.indices),
    )


def inputs(
    height: int,
    width: int,
    kind: str = "backward 1",
    lengths: tuple[int, ...] = (13,),
    zero_history: bool = False,
    timestep: float = 836.0,
) -> Inputs:
    """Random inputs; lengths are the valid prompt tokens of each sample, padded to 20."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    batch = len(lengths)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    history = [draw(16, frames, height, width) for frames in (2, 2, 16)]
    if zero_history:
        history = [torch.zeros_like(group) for group in history]
    mask = torch.arange(20) < torch.tensor(lengths).unsqueeze(1)
    return Inputs(
        x=draw(16, 9, height, width),
        timestep=torch.full((batch,), timestep),
        context=draw(20, CONFIG.text_embed_dim) * mask.unsqueeze(-1),
        y=draw(CONFIG.pooled_projection_dim),
        guidance=torch.full((batch,), GUIDANCE),
        frame_indices=layout(kind),
        history_1x=history[0],
        history_2x=history[1],
        history_4x=history[2],
        image_embeds=draw(9, CONFIG.image_proj_dim),
        attention_mask=mask,
    )


@torch.no_grad()
def run_oracle(model: Any, given: Inputs) -> Tensor:
    """The same inputs under diffusers' names."""
    section, near, middle, far = (torch.tensor(indices) for indices in given.frame_indices)
    dtype = model.dtype
    return model(
        hidden_states=given.x.to(dtype),
        timestep=given.timestep.to(dtype),
        encoder_hidden_states=given.context.to(dtype),
        encoder_attention_mask=given.attention_mask,
        pooled_projections=given.y.to(dtype),
        image_embeds=given.image_embeds.to(dtype),
        guidance=given.guidance.to(dtype),
        indices_latents=section,
        latents_clean=given.history_1x.to(dtype),
        indices_latents_clean=near,
        latents_history_2x=given.history_2x.to(dtype),
        indices_latents_history_2x=middle,
        latents_history_4x=given.history_4x.to(dtype),
        indices_latents_history_4x=far,
        return_dict=False,
    )[0].float()


@torch.no_grad()
def run_ours(model: FramePackTransformer, given: Inputs, **changes: Any) -> Tensor:
    """Floating tensors in the model's dtype except timestep and guidance, which the model rounds itself."""
    dtype = next(model.parameters()).dtype
    named = {**given._asdict(), **changes}
    for name in ("x", "context", "y", "history_1x", "history_2x", "history_4x", "image_embeds"):
        if named[name] is not None:
            named[name] = named[name].to(dtype)
    return model(**named)


def relative_l2(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
