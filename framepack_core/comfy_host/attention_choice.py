"""The host's attention, except where its default leaves a much faster backend of torch unused.

ComfyUI's default on NVIDIA cards is torch's SDPA; newer versions ask for flash before cuDNN, which is the slow order
on Hopper and may be the right one elsewhere. So it is measured, once for each kind of input, and FlashAttention-3 with
it where a package for it is installed: its results are as exact. Whatever the user chose by flag, node or another
extension stays as it is.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import comfy.cli_args
import comfy.ldm.modules.attention
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

# one of these set means that the user has decided; "deterministic", because a stopwatch is not
DECIDING_FLAGS = (
    "use_split_cross_attention",
    "use_quad_cross_attention",
    "use_pytorch_cross_attention",
    "use_sage_attention",
    "use_flash_attention",
    "use_ck_attention",
    "deterministic",
)
OVERRIDE = "optimized_attention_override"
TORCH_BACKENDS = {
    "cudnn": (SDPBackend.CUDNN_ATTENTION, "can_use_cudnn_attention"),
    "flash": (SDPBackend.FLASH_ATTENTION, "can_use_flash_attention"),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, "can_use_efficient_attention"),
}
"""torch's backends, each with torch's question whether it takes such tensors."""
FLASH3 = "flash 3"
FLASH3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")  # of FlashAttention's own build, of fa3-fwd's wheel
HOPPER = 9  # major compute capability, for which FlashAttention-3 is made
SHORTEST = 2048  # tokens; below, attention is not what takes the time
WORTH = 0.9  # of the host's time; for less than this gain the host's choice stays
MEASURED_HEADS = 6  # enough to fill a card, a quarter of the model's
RUNS = 3


def host_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, transformer_options: dict | None = None) -> Tensor:
    """Attention of q k v [B, heads, L, d] -> [B, L, heads * d], looked up at each call so that overrides apply."""
    options = transformer_options or {}
    attention = comfy.ldm.modules.attention.optimized_attention
    if not user_decided(comfy.cli_args.args, attention, options) and _is_measurable(q, k.shape[2]):
        backend = measured_backend(q.device, q.dtype, measured_length(k.shape[2]), q.shape[3])
        if backend is not None:
            return attend(q, k, v, backend)
    return attention(q, k, v, heads, skip_reshape=True, transformer_options=options)


def attention_name(device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int, options: dict) -> str:
    """What computes attention over so many tokens, in words for a report."""
    attention = comfy.ldm.modules.attention.optimized_attention
    name = attention.__name__.removeprefix("attention_")
    if OVERRIDE in options:
        return getattr(options[OVERRIDE], "report_name", f"{name}, overridden on the model")
    if user_decided(comfy.cli_args.args, attention, options) or not _measures(device, dtype, tokens):
        return name
    backend = measured_backend(device, dtype, measured_length(tokens), head_dim)
    return name if backend is None else f"{name}, by {backend} as measured on this card"


def user_decided(args: Any, attention: Callable[..., Tensor], options: dict) -> bool:
    """True when a flag, an override node, an installed xformers or another extension has chosen the attention."""
    by_flag = any(getattr(args, flag, False) for flag in DECIDING_FLAGS)
    return by_flag or OVERRIDE in options or attention is not comfy.ldm.modules.attention.attention_pytorch


def measured_length(length: int) -> int:
    """The length at which inputs of this length are measured: the next power of two below."""
    return 1 << (length.bit_length() - 1)


def fastest(milliseconds: Mapping[str | None, float]) -> str | None:
    """The backend to use instead of the host's order, whose time stands at None; None to keep that."""
    best = min(milliseconds, key=milliseconds.__getitem__)
    return best if milliseconds[best] < WORTH * milliseconds[None] else None


def backend_name(backend: str | None) -> str:
    """What stands for it in a log."""
    return backend or "the host's default"


@functools.cache
def measured_backend(device: torch.device, dtype: torch.dtype, length: int, head_dim: int) -> str | None:
    """fastest() of this card; a fact about machine and torch, so it is remembered.

    None, too, where the memory to measure is missing, and before torch 2.6, which has one order for all.
    """
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return None
    try:
        with torch.cuda.device(device):  # of the events
            times = backend_times(device, dtype, length, MEASURED_HEADS, head_dim)
    except torch.OutOfMemoryError:
        logger.info("FramePack: no memory to measure attention with; the host's default is used")
        return None
    chosen = fastest(times)
    logger.info(
        "FramePack: attention over %d tokens and more by %s (%s)",
        length,
        backend_name(chosen),
        ", ".join(f"{backend_name(backend)} {time:.2f} ms" for backend, time in times.items()),
    )
    return chosen


def backend_times(
    device: torch.device, dtype: torch.dtype, length: int, heads: int, head_dim: int
) -> dict[str | None, float]:
    """Milliseconds of the host's default (at None) and of every backend that takes such tensors."""
    generator = torch.Generator(device).manual_seed(0)  # of its own: sampling must find the global one as it was
    shape = (3, 1, heads, length, head_dim)
    q, k, v = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    host = comfy.ldm.modules.attention.attention_pytorch
    calls: dict[str | None, Callable[[], Tensor]] = {None: lambda: host(q, k, v, heads, skip_reshape=True)}
    calls |= {backend: functools.partial(attend, q, k, v, backend) for backend in usable_backends(q, k, v)}
    return _milliseconds({backend: call for backend, call in calls.items() if _runs(call, backend)})


def usable_backends(q: Tensor, k: Tensor, v: Tensor) -> list[str]:
    """Names of those that say that they take such tensors; some find out only when they run."""
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    names = [name for name, (_, usable) in TORCH_BACKENDS.items() if getattr(torch.backends.cuda, usable)(params)]
    return [*names, FLASH3] if flash3_runs_on(q.device) and flash3_function() is not None else names


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """Attention by this backend, [B, heads, L, d] -> [B, L, heads * d]; of torch's, the others stand behind it."""
    if backend == FLASH3:
        return flash3(q, k, v)
    order = [TORCH_BACKENDS[backend][0], *(each for each, _ in TORCH_BACKENDS.values()), SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def flash3(q: Tensor, k: Tensor, v: Tensor, **scales: Tensor) -> Tensor:
    """FlashAttention-3 (arXiv 2407.08608), [B, heads, L, d] -> [B, L, heads * d]. Raises RuntimeError without it.

    scales: of fp8 inputs, float32 [B, heads] each, by the package's names q_descale, k_descale, v_descale.
    """
    function = flash3_function()
    if function is None:
        raise RuntimeError("FlashAttention-3 is not installed; the package fa3-fwd has it for Hopper cards.")
    out = function(*(x.transpose(1, 2) for x in (q, k, v)), **scales)  # [B, L, heads, d]
    return (out[0] if isinstance(out, tuple) else out).flatten(2)  # some versions give the logarithms of the sums, too


def flash3_runs_on(device: torch.device) -> bool:
    """Whether it is made for this card, installed or not."""
    return _is_nvidia(device) and torch.cuda.get_device_capability(device)[0] == HOPPER


@functools.cache
def flash3_function() -> Callable[..., Any] | None:
    """Of the first package that is installed and loads; None without one."""
    for name in FLASH3_MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name).flash_attn_func
        except (ImportError, OSError, AttributeError) as error:
            logger.info("FramePack: %s is installed and does not load: %s", name, error)
    return None


def _measures(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Whether attention of such inputs is worth a measurement, and can have one."""
    return _is_nvidia(device) and dtype in (torch.bfloat16, torch.float16) and tokens >= SHORTEST


def _is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None


def _is_measurable(q: Tensor, tokens: int) -> bool:
    return (
        _measures(q.device, q.dtype, tokens)
        and not q.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def _runs(call: Callable[[], Tensor], backend: str | None) -> bool:
    """Calls once, which also builds plans and loads code."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # cuDNN finds out only when it runs
        if backend is None:
            raise
        logger.info("FramePack: %s attention does not run here: %s", backend, error)
        return False
    return True


def _milliseconds(calls: dict[str | None, Callable[[], Tensor]]) -> dict[str | None, float]:
    """Medians by CUDA events, in turns, so that a card that is still waking up wakes up for all."""
    spans = {backend: [] for backend in calls}
    for _ in range(RUNS):
        for backend, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            spans[backend].append((start, end))
    torch.cuda.synchronize()
    return {
        backend: statistics.median(start.elapsed_time(end) for start, end in pairs) for backend, pairs in spans.items()
    }
