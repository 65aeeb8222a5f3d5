"""The packed transformer: history at three rates and one section in, velocity of the section out.

Source: FP hunyuan_video_packed.py HunyuanVideoTransformer3DModelPacked. Token order inside:
visual = [4x | 2x | 1x | section], text = [image condition | prompt], attention over [visual | text].
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..skipping.run import SKIPPER, compute_all
from . import operations as plain_operations
from .blocks import DoubleBlock, Modulation, SingleBlock, modulated_norm
from .config import FramePackConfig
from .embedders import HistoryEmbedder, ImageProjection, PatchEmbedder, TextRefiner, TimeTextEmbedder
from .rope import Rotation, join_rotations, pooled_grid, rotation_grid

PATCH = 2


class FramePackTransformer(nn.Module):
    """13B in the released sizes; any size by its config.

    operations gives Linear, Conv3d, LayerNorm and RMSNorm (comfy.ops or model/operations.py); attention is
    called as attention(q, k, v, heads, transformer_options=...) with q k v [B, heads, L, d].
    """

    def __init__(
        self,
        config: FramePackConfig,
        dtype: torch.dtype | None = None,
        device: Any = None,
        operations: Any = plain_operations,
        attention: Any = plain_operations.attention,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.attention = attention
        factory = {"dtype": dtype, "device": device}
        width = config.width
        self.x_embedder = PatchEmbedder(config, operations, **factory)
        self.clean_x_embedder = HistoryEmbedder(config, operations, **factory)
        self.image_projection = ImageProjection(config, operations, **factory)
        self.time_text_embed = TimeTextEmbedder(config.pooled_projection_dim, width, True, operations, **factory)
        self.context_embedder = TextRefiner(config, operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config, operations, attention, **factory) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config, operations, attention, **factory) for _ in range(config.num_single_layers)
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
        options = dict(transformer_options or {})
        # the original feeds both in the compute dtype: in bf16 guidance 10 is 9984 and 883.5 is 884
        timestep, guidance = timestep.to(x.dtype), guidance.to(x.dtype)
        if x.shape[-1] % PATCH or x.shape[-2] % PATCH:
            raise ValueError(f"Latents are {x.shape[-1]}x{x.shape[-2]}; both must be even (pixels a multiple of 16).")
        history = (history_1x, history_2x, history_4x)
        visual, rotation = self._pack(x, history, frame_indices)
        text, lengths = _crop(context, attention_mask)
        text = self.context_embedder(text, timestep, lengths, self.attention)
        if image_embeds is not None:
            text = torch.cat([self.image_projection(image_embeds), text], dim=1)  # [B, N + Lt, D]
        if lengths is not None:
            unmasked = visual.shape[1] + text.shape[1] - max(lengths)
            lengths = [unmasked + length for length in lengths]
        steering = self.time_text_embed(timestep, y, guidance)

        frames, height, width = x.shape[2], x.shape[3] // PATCH, x.shape[4] // PATCH
        tokens = frames * height * width
        stages = self._blocks(visual, text, steering, rotation, lengths, options, tokens)
        run_stages = options.get(SKIPPER, compute_all)
        section = run_stages(visual[:, -tokens:], partial(self._first_norm, visual, steering), stages, options)
        scale, shift = self.norm_out(steering)
        section = modulated_norm(section, shift, scale)
        patches = self.proj_out(section.float())  # float32, as high_quality_fp32_output_for_inference
        patches = patches.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (frames, height, width))
        return patches.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)  # [B, C, T, H, W]

    def _pack(
        self, x: Tensor, history: tuple[Tensor | None, ...], indices: tuple[tuple[int, ...], ...]
    ) -> tuple[Tensor, Rotation]:
        """Tokens [B, L, D] of all groups, coarsest history first and the section last, and their rotation."""
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        tokens = [self.x_embedder(x)]
        grids = [rotation_grid(self.config, _checked(indices[0], x), height, width, x.device)]
        for group, group_indices, rate in zip(history, indices[1:], (1, 2, 4), strict=True):
            if group is None:
                continue
            grid = rotation_grid(self.config, _checked(group_indices, group), height, width, x.device)
            tokens.append(self.clean_x_embedder(group.to(x.dtype), rate))
            grids.append(grid if rate == 1 else pooled_grid(grid, rate))
        return torch.cat(tokens[::-1], dim=1), join_rotations(grids[::-1])

    def _first_norm(self, visual: Tensor, steering: Tensor) -> Tensor:
        """What goes into the first block's attention, which TeaCache compares from step to step."""
        shift, scale, *_ = self.transformer_blocks[0].norm1(steering)  # pyright: ignore[reportCallIssue]
        return modulated_norm(visual, shift, scale)

    def _blocks(
        self,
        visual: Tensor,
        text: Tensor,
        steering: Tensor,
        rotation: Rotation,
        lengths: list[int] | None,
        options: dict,
        tokens: int,
    ) -> Iterator[Tensor]:
        """The section's tokens [B, tokens, D] after the first block and after the last; runs as far as it is asked.

        Each block is replaceable as in the host's HunyuanVideo: patches_replace["dit"][(kind, number)].
        """
        replace = options.get("patches_replace", {}).get("dit", {})
        visual_length = visual.shape[1]
        shared = {"vec": steering, "pe": rotation, "attention_mask": None, "transformer_options": options}

        options.update(total_blocks=len(self.transformer_blocks), block_type="double")
        for number, block in enumerate(self.transformer_blocks):
            options["block_index"] = number

            def double(args: dict, block=block) -> dict:
                img, txt = block(args["img"], args["txt"], args["vec"], args["pe"], lengths, options)
                return {"img": img, "txt": txt}

            out = _run(double, replace.get(("double_block", number)), {"img": visual, "txt": text, **shared})
            visual, text = out["img"], out["txt"]
            if number == 0:
                yield visual[:, -tokens:]

        x = torch.cat([visual, text], dim=1)
        options.update(
            total_blocks=len(self.single_transformer_blocks), block_type="single", img_slice=[0, visual_length]
        )
        for number, block in enumerate(self.single_transformer_blocks):
            options["block_index"] = number

            def single(args: dict, block=block) -> dict:
                return {"img": block(args["img"], args["vec"], args["pe"], lengths, options)}

            x = _run(single, replace.get(("single_block", number)), {"img": x, **shared})["img"]
        yield x[:, visual_length - tokens : visual_length]


def _run(block: Any, replacement: Any, args: dict) -> dict:
    return block(args) if replacement is None else replacement(args, {"original_block": block})


def _checked(indices: tuple[int, ...], frames: Tensor) -> tuple[int, ...]:
    if len(indices) != frames.shape[2]:
        raise ValueError(f"{len(indices)} frame indices were given for {frames.shape[2]} latent frames.")
    return indices


def _crop(context: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, list[int] | None]:
    """Text cut to the longest valid prompt, and the valid lengths if they differ (None if all are equal)."""
    if attention_mask is None:
        return context, None
    lengths = attention_mask.bool().sum(dim=1).tolist()
    context = context[:, : max(lengths)]
    return context, None if min(lengths) == max(lengths) else lengths
