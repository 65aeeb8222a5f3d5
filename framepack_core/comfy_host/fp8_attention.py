"""Attention in 8-bit float as a patch of MODEL: the host's override, with FlashAttention-3 behind it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.fp8 import Heads, quantise_heads
from .attention_choice import OVERRIDE, SHORTEST, flash3, flash3_function, flash3_runs_on
from .conditioning import check_framepack


def attend_in_fp8(model: Any, shortest: int = SHORTEST) -> Any:
    """A clone of MODEL with this attention over at least so many tokens; over fewer, it is not what takes the time.

    Raises ValueError for another model, for one whose attention another node has replaced, and where the card is not
    one of FlashAttention-3's or its package is missing.
    """
    check_framepack(model)
    if OVERRIDE in model.model_options.get("transformer_options", {}):
        raise ValueError(
            "The model's attention is already replaced by another node, and only one can compute it. Take off that "
            "node or FramePack 8-bit Attention."
        )
    _check_card(model.load_device)
    if flash3_function() is None:
        raise ValueError(
            "FramePack 8-bit Attention needs FlashAttention-3, which is not installed or does not load (the log says "
            "why). Install its package for ComfyUI's Python, for example with 'pip install --no-deps fa3-fwd', or "
            "take off the node."
        )
    model = model.clone()
    model.model_options["transformer_options"][OVERRIDE] = Fp8Attention(shortest)
    return model


class Fp8Attention(NamedTuple):
    """The override: long attention without a mask in 8 bit, everything else by the function that it overrides."""

    shortest: int  # tokens

    report_name = "FlashAttention-3 in fp8"  # for attention_name

    def __call__(
        self, function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        is_plain = kwargs.get("skip_reshape") and not kwargs.get("skip_output_reshape") and kwargs.get("mask") is None
        if is_plain and not args and k.shape[2] >= self.shortest:
            return fp8_attention(q, k, v)
        return function(q, k, v, heads, *args, **kwargs)


def fp8_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q k v [B, heads, L, d] -> [B, L, heads * d], each head quantised with a scale of its own."""
    return attend_heads(quantise_heads(q), quantise_heads(k), quantise_heads(v)).to(q.dtype)


def attend_heads(q: Heads, k: Heads, v: Heads) -> Tensor:
    """The product of what is quantised already, in bf16."""
    return flash3(q.values, k.values, v.values, q_descale=q.scales, k_descale=k.scales, v_descale=v.scales)


def _check_card(device: torch.device) -> None:
    if flash3_runs_on(device):
        return
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    raise ValueError(
        f"FramePack 8-bit Attention is FlashAttention-3, which runs on Hopper cards (H100, H200), and this is {card}. "
        "Take off the node; on other NVIDIA cards SageAttention is the one in 8 bit, with ComfyUI's "
        "--use-sage-attention."
    )
