"""FramePack as a MODEL: config, model and module as core's loaders and samplers expect them."""

from typing import Any

import comfy.conds
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import torch
from torch import Tensor

from ..constants import GUIDANCE, TIMESTEP_SCALE
from ..model.config import FramePackConfig
from ..model.quantisation import ROWWISE
from ..model.transformer import FramePackTransformer
from ..packing import PackedHistory
from .fp8_layout import register_layout
from .fp8_operations import RowwiseOperations

IMAGE_MODEL = "framepack"
HISTORY_KEY = "framepack_history"
HISTORY_RATES = {"history_1x": 1, "history_2x": 2, "history_4x": 4}


class FramePackModelConfig(comfy.supported_models.HunyuanVideo):
    """As HunyuanVideo (latent format, dtypes, shift 7), with the file's own key names."""

    unet_config = {"image_model": IMAGE_MODEL}

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

    def _apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # denoised is formed from the rounded x, as the original does (FP k_diffusion/wrapper.py)
        dtype = self.manual_cast_dtype or self.get_dtype()
        return super()._apply_model(x.to(dtype).to(x.dtype), t, *args, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict:
        """Conditioning entry -> inputs of the module. Raises ValueError when the entry has no history."""
        out = super().extra_conds(**kwargs)
        packed: PackedHistory | None = kwargs.get(HISTORY_KEY)
        if packed is None:
            raise ValueError(
                "This conditioning has no FramePack history. Pass positive and negative through "
                "FramePack Apply History, or use FramePack Sampler."
            )
        _check_size(packed, kwargs["noise"])
        for name in HISTORY_RATES:  # to the device here: once a section, not once a step
            history = self.process_latent_in(getattr(packed, name).to(kwargs["device"]))
            out[name] = comfy.conds.CONDRegular(history)
        out["frame_indices"] = comfy.conds.CONDConstant(packed.indices)
        guidance = TIMESTEP_SCALE * kwargs.get("guidance", GUIDANCE)
        out["guidance"] = comfy.conds.CONDRegular(torch.FloatTensor([guidance]))
        vision = kwargs.get("clip_vision_output")
        if vision is not None:
            out["image_embeds"] = comfy.conds.CONDRegular(vision.last_hidden_state.to(kwargs["device"]))
        return out

    def extra_conds_shapes(self, **kwargs: Any) -> dict:
        """Sizes of the history, in patches of the section, for the host's memory estimate."""
        packed: PackedHistory | None = kwargs.get(HISTORY_KEY)
        if packed is None:
            return {}
        return {name: _full_rate_shape(getattr(packed, name), rate) for name, rate in HISTORY_RATES.items()}

    def resize_cond_for_context_window(self, cond_key: str, cond_value: Any, *args: Any, **kwargs: Any) -> Any:
        # history is not a stretch of the window and must not be cut with it
        return cond_value if cond_key in HISTORY_RATES or cond_key == "frame_indices" else None


class HostTransformer(FramePackTransformer):
    """The transformer with the host's operations, attention and wrappers."""

    def __init__(self, image_model: str, dtype: Any = None, device: Any = None, operations: Any = None, **sizes: Any):
        super().__init__(FramePackConfig(**sizes), dtype, device, operations, host_attention)
        self.proj_out.comfy_cast_weights = True  # it computes in float32 whatever the weights are

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

    def _forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict, **conds: Any) -> Tensor:
        known = {name: conds[name] for name in _MODULE_CONDS if name in conds}
        return super().forward(x, timestep, context, transformer_options=transformer_options, **known)


_MODULE_CONDS = ("y", "guidance", "frame_indices", *HISTORY_RATES, "image_embeds", "attention_mask")


def host_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, transformer_options: dict | None = None) -> Tensor:
    """The attention that the user chose for the host, looked up at each call so that overrides apply."""
    attention = comfy.ldm.modules.attention.optimized_attention
    return attention(q, k, v, heads, skip_reshape=True, transformer_options=transformer_options or {})


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
