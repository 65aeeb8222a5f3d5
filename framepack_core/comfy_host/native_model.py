"""FramePack as a MODEL: config, model and module as core's loaders and samplers expect them."""

from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import torch
from torch import Tensor

from ..constants import GUIDANCE, TIMESTEP_SCALE
from ..model.config import FramePackConfig
from ..model.pieces import GAPS
from ..model.quantisation import ROWWISE
from ..model.transformer import FramePackTransformer, SectionInputs, StepInputs, crop
from ..packing import PackedHistory
from .attention_choice import host_attention
from .encoder_widths import check_prompt, check_vision
from .fp8_layout import register_layout
from .fp8_operations import RowwiseOperations
from .prefetch import prefetched
from .shelf import patch_for_saving, shelve_step_layers
from .step_sources import HISTORY_RATES, Call, CONDSources, parts_of_step, source_of

IMAGE_MODEL = "framepack"
HISTORY_KEY = "framepack_history"
SOURCES = "sources"


class FramePackModelConfig(comfy.supported_models.HunyuanVideo):
    """As HunyuanVideo (latent format, dtypes, shift 7), with the file's own key names."""

    unet_config = {"image_model": IMAGE_MODEL}
    memory_usage_factor = 1.0  # HunyuanVideo's is 1.8; here MLPs go in pieces (planning/cost.py activation_bytes)

    def __init__(self, unet_config: dict) -> None:
        super().__init__(unet_config)
        self.is_rowwise = self.unet_config.pop("is_rowwise", False)
        if self.is_rowwise:  # any truth tells the host not to take the most frequent dtype, fp8, for all tensors
            self.quant_config = self.layer_quant_config = {"format": ROWWISE}
            self.scaled_fp8 = torch.float8_e4m3fn

    def set_inference_dtype(self, dtype: Any, *args: Any, **kwargs: Any) -> None:
        if self.is_rowwise and dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise ValueError(f"The file is quantised already ({ROWWISE}); set weight_dtype to default.")
        super().set_inference_dtype(dtype, *args, **kwargs)

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> "FramePackModel":
        if self.is_rowwise:
            register_layout()
            self.custom_operations = RowwiseOperations
        return FramePackModel(self, device=device)

    def process_unet_state_dict(self, state_dict: dict) -> dict:
        return state_dict

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        return {f"model.diffusion_model.{key}": tensor for key, tensor in state_dict.items()}


class FramePackModel(comfy.model_base.HunyuanVideo):
    """Derived from core's HunyuanVideo, so that its LoRA key names and pooled prompts apply."""

    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostTransformer
        )
        self.memory_usage_factor_conds = tuple(HISTORY_RATES)

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **conds: Any,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        # denoised is formed from the rounded x, as the original does (FP k_diffusion/wrapper.py)
        rounded = x.to(self.manual_cast_dtype or self.get_dtype())
        call = Call(self, rounded, t, options, conds.pop(SOURCES), {**conds, "context": c_crossattn})
        return super()._apply_model(
            rounded.to(x.dtype), t, c_concat, c_crossattn, control, options, **conds, **parts_of_step(call)
        )

    def extra_conds(self, **kwargs: Any) -> dict:
        """Conditioning entry -> inputs of the module. ValueError for one without history or of other encoders.

        Of padded prompts only the tokens are kept.
        """
        out = super().extra_conds(**kwargs)
        packed: PackedHistory | None = kwargs.get(HISTORY_KEY)
        if packed is None:
            raise ValueError(
                "This conditioning has no FramePack history. Pass positive and negative through "
                "FramePack Apply History, or use FramePack Sampler."
            )
        _check_size(packed, kwargs["noise"])
        sizes, vision = self.diffusion_model.config, kwargs.get("clip_vision_output")
        names = "The conditioning", "this transformer"
        check_prompt(*names, sizes, kwargs.get("cross_attn"), kwargs.get("pooled_output"))
        if vision is not None:
            check_vision(*names, sizes, vision.last_hidden_state)
        mask = out.pop("attention_mask", None)
        context, lengths = crop(out["c_crossattn"].cond, None if mask is None else mask.cond)
        inputs = {
            "context": context,
            "y": out["y"].cond,
            "guidance": torch.FloatTensor([TIMESTEP_SCALE * kwargs.get("guidance", GUIDANCE)]),
            "image_embeds": None if vision is None else vision.last_hidden_state,
        }
        out[SOURCES] = CONDSources((source_of(**inputs, lengths=lengths),))
        out["frame_indices"] = comfy.conds.CONDConstant(packed.indices)
        # to the device here: once a section, not once a step
        inputs["c_crossattn"] = inputs.pop("context")
        inputs.update({name: self.process_latent_in(getattr(packed, name)) for name in HISTORY_RATES})
        for name, tensor in inputs.items():
            if tensor is not None:
                out[name] = comfy.conds.CONDRegular(tensor.to(kwargs["device"]))
        return out

    def memory_required(self, *args: Any, **kwargs: Any) -> float:
        """Bytes that the host keeps free of weights: its estimate for tensors, and what is lost between them."""
        return super().memory_required(*args, **kwargs) + GAPS

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict:
        """With the LoRAs that are on it. Newer hosts patch while they save."""
        if not hasattr(comfy.model_patcher.ModelPatcher, "model_state_dict_for_saving"):
            patch_for_saving(self)
        return super().state_dict_for_saving(*args, **kwargs)

    def extra_conds_shapes(self, **kwargs: Any) -> dict:
        """Sizes of the history, in patches of the section, for the host's memory estimate."""
        packed: PackedHistory | None = kwargs.get(HISTORY_KEY)
        if packed is None:
            return {}
        return {name: _full_rate_shape(getattr(packed, name), rate) for name, rate in HISTORY_RATES.items()}

    def resize_cond_for_context_window(self, cond_key: str, cond_value: Any, *args: Any, **kwargs: Any) -> Any:
        # history is not a stretch of the window and must not be cut with it
        return cond_value if cond_key in (*HISTORY_RATES, "frame_indices", SOURCES) else None


class HostTransformer(FramePackTransformer):
    """The transformer with the host's operations, attention and wrappers."""

    def __init__(self, image_model: str, dtype: Any = None, device: Any = None, operations: Any = None, **sizes: Any):
        super().__init__(
            FramePackConfig(**sizes), dtype, device, operations, host_attention, host_weight_for, prefetched
        )
        self.proj_out.comfy_cast_weights = True  # it computes in float32 whatever the weights are
        shelve_step_layers(self)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **conds: Any,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # EasyCache reads the first and the last positional argument
        return executor.execute(x, timestep, context, options, **conds)

    def _forward(
        self,
        x: Tensor,
        _timestep: Tensor,
        _context: Tensor,
        transformer_options: dict,
        *,
        step: StepInputs,
        section: SectionInputs,
        mlp_piece: int | None,
        **_made_from: Any,
    ) -> Tensor:
        return self.velocity(x, step, section, transformer_options, mlp_piece)


def host_weight_for(norm: torch.nn.Module, x: Tensor) -> Tensor:
    """The weight of a norm layer wherever the host keeps it, patched."""
    return comfy.ops.cast_bias_weight(norm, x)[0]


def _full_rate_shape(group: Tensor, rate: int) -> list[float]:
    batch, channels, frames, height, width = group.shape
    return [batch, channels, frames / rate**3, height, width]


def _check_size(packed: PackedHistory, noise: Tensor) -> None:
    history, window = packed.history_1x, len(packed.indices.section)
    if history.shape[-2:] != noise.shape[-2:] or noise.shape[2] != window:
        raise ValueError(
            f"The latent to sample is {tuple(noise.shape[2:])} (frames, height, width) but the history needs "
            f"{(window, *history.shape[-2:])}; use the latent that FramePack Apply History gives."
        )
