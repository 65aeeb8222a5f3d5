"""The packed transformer: history at three rates and one section in, velocity of the section out.

Source: FP hunyuan_video_packed.py HunyuanVideoTransformer3DModelPacked. Token order inside:
visual = [4x | 2x | 1x | section], text = [image condition | prompt], attention over [visual | text].

A forward has parts that live for different times: StepInputs (noise level and prompt, the same in all sections),
SectionInputs (history and places, the same in all steps of a section), and velocity (every step).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..skipping.run import SKIPPER, compute_all
from . import operations as plain_operations
from .blocks import DoubleBlock, Extent, Modulation, Services, SingleBlock
from .config import FramePackConfig
from .elementwise import modulated_norm
from .embedders import HistoryEmbedder, ImageProjection, PatchEmbedder, TextRefiner, TimeTextEmbedder
from .rope import Rotation, join_rotations, pooled_grid, rotation_grid

PATCH = 2
Hold = Callable[[nn.Module], contextlib.AbstractContextManager[Any]]
"""hold(module) gives the module, or a stand-in, for several calls in a row (its weights fetched once)."""


class StepInputs(NamedTuple):
    """What a step takes from its noise level, the prompt, guidance and the start image, and from nothing else."""

    vectors: Tensor  # [B, N, D]: 12 for each double block, 3 for each single block, 2 of the output norm
    prompt: Tensor  # [B, Lp, D], refined
    image: Tensor | None  # [B, Li, D]
    lengths: tuple[int, ...] | None = None  # valid tokens of each prompt, None when all are


class SectionInputs(NamedTuple):
    """What all steps of a section share."""

    history: Tensor | None  # [B, Lh, D]: tokens, coarsest first
    rotation: Rotation  # of history and section, Lv places


class FramePackTransformer(nn.Module):
    """13B in the released sizes; any size by its config.

    operations gives Linear, Conv3d, LayerNorm and RMSNorm (comfy.ops or model/operations.py); attention and weight_for
    are described in blocks.Services; in_order(blocks, x, options) gives blocks one after the other, each ready to run.
    """

    def __init__(
        self,
        config: FramePackConfig,
        dtype: torch.dtype | None = None,
        device: Any = None,
        operations: Any = plain_operations,
        attention: Any = plain_operations.attention,
        weight_for: Any = plain_operations.weight_for,
        in_order: Any = plain_operations.in_order,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.attention, self.in_order = attention, in_order
        services = Services(attention, weight_for)
        factory = {"dtype": dtype, "device": device}
        width = config.width
        self.x_embedder = PatchEmbedder(config, operations, **factory)
        self.clean_x_embedder = HistoryEmbedder(config, operations, **factory)
        self.image_projection = ImageProjection(config, operations, **factory)
        self.time_text_embed = TimeTextEmbedder(config.pooled_projection_dim, width, True, operations, **factory)
        self.context_embedder = TextRefiner(config, operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config, operations, services, **factory) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config, operations, services, **factory) for _ in range(config.num_single_layers)
        )
        self.norm_out = Modulation(width, 2, operations, **factory)
        self.proj_out = operations.Linear(width, PATCH * PATCH * config.out_channels, **factory)

    def forward(
        self,
        x: Tensor,  # [B, C, T, H, W] scaled noisy latents
        timestep: Tensor,  # [B], sigma * 1000; rounded to the dtype of x
        context: Tensor,  # [B, Lt, text_embed_dim]
        y: Tensor,  # [B, pooled_projection_dim]
        guidance: Tensor,  # [B], distilled guidance * 1000; rounded likewise
        frame_indices: tuple[tuple[int, ...], ...],  # packing.FrameIndices
        history_1x: Tensor | None = None,  # [B, C, T1, H, W] scaled
        history_2x: Tensor | None = None,
        history_4x: Tensor | None = None,
        image_embeds: Tensor | None = None,  # [B, N, image_proj_dim]
        attention_mask: Tensor | None = None,  # [B, Lt], nonzero on the valid prefix of each prompt
        transformer_options: dict | None = None,
    ) -> Tensor:
        """Velocity (noise - latents) of the section, [B, C, T, H, W] float32.

        A group of history that is None has no tokens; a group of zeros has, and they are attended to.
        Raises ValueError for odd latent sizes or indices that do not match the groups.
        """
        section = self.section_inputs(x, frame_indices, (history_1x, history_2x, history_4x))
        context, lengths = crop(context, attention_mask)
        (step,) = self.step_inputs([timestep.to(x.dtype)], guidance.to(x.dtype), y, context, image_embeds, lengths)
        return self.velocity(x, step, section, transformer_options)

    def step_inputs(
        self,
        timesteps: Sequence[Tensor],  # each [B]
        guidance: Tensor,
        y: Tensor,
        context: Tensor,
        image_embeds: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        hold: Hold = contextlib.nullcontext,
    ) -> list[StepInputs]:
        """StepInputs of every timestep, each of the parts that make them visited once.

        timesteps and guidance are in the compute dtype: in bf16, as in the original, guidance 10 is 9984 and 883.5 is
        884. One timestep among many gives the same bits as alone.
        """
        with hold(self.time_text_embed) as embed:
            steering = [embed(timestep, y, guidance) for timestep in timesteps]
        with hold(self.context_embedder) as refine:
            prompts = [refine(context, timestep, lengths, self.attention) for timestep in timesteps]
        image = None
        if image_embeds is not None:
            with hold(self.image_projection) as project:
                image = project(image_embeds)
        vectors: list[list[Tensor]] = [[] for _ in timesteps]
        for modulation in self.modulations():
            with hold(modulation) as modulate:
                for known, vector in zip(vectors, steering, strict=True):
                    known.append(modulate(vector))
        return [
            StepInputs(torch.cat(known, dim=1), prompt, image, lengths)
            for known, prompt in zip(vectors, prompts, strict=True)
        ]

    def modulations(self) -> Iterator[nn.Module]:
        """In the order of StepInputs.vectors."""
        for block in self.transformer_blocks:
            yield from (block.norm1, block.norm1_context)  # pyright: ignore
        for block in self.single_transformer_blocks:
            yield block.norm  # pyright: ignore
        yield self.norm_out

    def section_inputs(
        self, x: Tensor, frame_indices: tuple[tuple[int, ...], ...], history: tuple[Tensor | None, ...]
    ) -> SectionInputs:
        """Tokens of the history groups (1x, 2x, 4x), and the places of all tokens, for latents of the shape of x."""
        if x.shape[-1] % PATCH or x.shape[-2] % PATCH:
            raise ValueError(f"Latents are {x.shape[-1]}x{x.shape[-2]}; both must be even (pixels a multiple of 16).")
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        grids = [rotation_grid(self.config, _checked(frame_indices[0], x), height, width, x.device)]
        tokens = []
        for group, indices, rate in zip(history, frame_indices[1:], (1, 2, 4), strict=True):
            if group is None:
                continue
            grid = rotation_grid(self.config, _checked(indices, group), height, width, x.device)
            tokens.append(self.clean_x_embedder(group.to(x.dtype), rate))
            grids.append(grid if rate == 1 else pooled_grid(grid, rate))
        return SectionInputs(torch.cat(tokens[::-1], dim=1) if tokens else None, join_rotations(grids[::-1]))

    def velocity(
        self,
        x: Tensor,
        step: StepInputs,
        section: SectionInputs,
        transformer_options: dict | None = None,
        mlp_piece: int | None = None,
    ) -> Tensor:
        """What forward gives, from parts made before. mlp_piece: most tokens that an MLP takes at once."""
        frames, height, width = x.shape[2], x.shape[3] // PATCH, x.shape[4] // PATCH
        options = dict(transformer_options or {})
        lengths = step.lengths
        if lengths is not None:
            before = section.rotation.cos.shape[2] + (0 if step.image is None else step.image.shape[1])
            lengths = tuple(before + valid for valid in lengths)
        extent = Extent(lengths, mlp_piece)
        embedded = self.x_embedder(x)
        stages = self._stages(embedded, step, section, extent, options)
        run_stages = options.get(SKIPPER, compute_all)
        own = run_stages(embedded, partial(self._first_norm, embedded, step, section), stages, options)
        scale, shift = step.vectors[:, -2:].split(1, dim=1)
        # float32, as high_quality_fp32_output_for_inference
        patches = self.proj_out(modulated_norm(own, shift, scale).float())
        patches = patches.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (frames, height, width))
        return patches.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)  # [B, C, T, H, W]

    # Each block can be replaced as in the host's HunyuanVideo: patches_replace["dit"][(kind, number)]. args["vec"]
    # holds the block's own vectors, [B, 12 or 3, D].

    def _stages(
        self, own: Tensor, step: StepInputs, section: SectionInputs, extent: Extent, options: dict
    ) -> Iterator[Tensor]:
        """The section's own tokens [B, Ls, D] after the first block and after the last; runs as far as it is asked."""
        joint = yield from self._double_blocks(own, step, section, extent, options)
        yield self._single_blocks(joint, step, section, extent, own.shape[1], options)

    def _first_norm(self, own: Tensor, step: StepInputs, section: SectionInputs) -> Tensor:
        """What goes into the first block's attention, which TeaCache compares from step to step."""
        visual = own if section.history is None else torch.cat([section.history, own], dim=1)
        shift, scale = step.vectors[:, :2].split(1, dim=1)
        return modulated_norm(visual, shift, scale)

    def _double_blocks(
        self, own: Tensor, step: StepInputs, section: SectionInputs, extent: Extent, options: dict
    ) -> Generator[Tensor, None, Tensor]:
        """Gives the section's tokens [B, Ls, D] after the first block, and [visual | text] after all double blocks."""
        visual = own if section.history is None else torch.cat([section.history, own], dim=1)
        text = step.prompt if step.image is None else torch.cat([step.image, step.prompt], dim=1)
        replace = options.get("patches_replace", {}).get("dit", {})
        options.update(total_blocks=len(self.transformer_blocks), block_type="double")
        for number, block in enumerate(self.in_order(self.transformer_blocks, visual, options)):
            options["block_index"] = number

            def run(args: dict, block=block) -> dict:
                img, txt = block(args["img"], args["txt"], args["vec"], args["pe"], extent, options)
                return {"img": img, "txt": txt}

            vectors = step.vectors[:, 12 * number : 12 * number + 12]
            given = {"img": visual, "txt": text, "vec": vectors, "pe": section.rotation}
            out = _run(run, replace.get(("double_block", number)), given, options)
            visual, text = out["img"], out["txt"]
            if number == 0:
                yield visual[:, -own.shape[1] :]
        return torch.cat([visual, text], dim=1)

    def _single_blocks(
        self, x: Tensor, step: StepInputs, section: SectionInputs, extent: Extent, length: int, options: dict
    ) -> Tensor:
        """The section's own tokens, the last `length` visual ones, after all single blocks, [B, length, D]."""
        blocks = self.single_transformer_blocks
        replace = options.get("patches_replace", {}).get("dit", {})
        end = section.rotation.cos.shape[2]
        options.update(total_blocks=len(blocks), block_type="single", img_slice=[0, end])
        before = 12 * len(self.transformer_blocks)
        for number, block in enumerate(self.in_order(blocks, x, options)):
            options["block_index"] = number
            replacement = replace.get(("single_block", number))
            # of the last block only the section is used; a replacement, however, is owed all tokens
            crops = number == len(blocks) - 1 and replacement is None
            wanted = slice(end - length, end) if crops else slice(None)

            def run(args: dict, block=block, wanted=wanted) -> dict:
                return {"img": block(args["img"], args["vec"], args["pe"], extent, options, wanted)}

            vectors = step.vectors[:, before + 3 * number : before + 3 * number + 3]
            x = _run(run, replacement, {"img": x, "vec": vectors, "pe": section.rotation}, options)["img"]
        return x if x.shape[1] == length else x[:, end - length : end]


def crop(context: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, tuple[int, ...] | None]:
    """Text cut to the longest valid prompt, and the valid lengths if they differ (None if all are equal).

    Waits for the device that holds the mask.
    """
    if attention_mask is None:
        return context, None
    lengths = tuple(attention_mask.bool().sum(dim=1).tolist())
    context = context[:, : max(lengths)]
    return context, None if min(lengths) == max(lengths) else lengths


def _run(block: Any, replacement: Any, given: dict, options: dict) -> dict:
    args = {**given, "attention_mask": None, "transformer_options": options}
    return block(args) if replacement is None else replacement(args, {"original_block": block})


def _checked(indices: tuple[int, ...], frames: Tensor) -> tuple[int, ...]:
    if len(indices) != frames.shape[2]:
        raise ValueError(f"{len(indices)} frame indices were given for {frames.shape[2]} latent frames.")
    return indices
