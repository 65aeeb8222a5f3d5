"""Whether the kernels can run on a device, found out once by running the smallest of them."""

import contextlib
import functools
import logging
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OLDEST_CAPABILITY = (8, 0)  # bfloat16 conversions; compilers have crashed on older cards instead of refusing


@functools.cache
def kernels_run_on(device: torch.device, dtype: torch.dtype) -> bool:
    """True when a kernel compiles and runs there; a fact about the machine, so it is remembered.

    False without Triton, on CPU, MPS, ZLUDA and cards before Ampere, and, said in the log, where Triton has no
    working C compiler or driver.
    """
    if device.type != "cuda" or torch.cuda.get_device_name(device).endswith("[ZLUDA]"):
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return False
    try:
        from .gelu import gelu
    except ImportError as error:
        logger.info("FramePack: no fused kernels, plain torch is used (%s)", error)
        return False
    return _runs("fused kernels", lambda: gelu(torch.zeros(1, 1, 16, device=device, dtype=dtype)))


@functools.cache
def convolution_runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """The same for the convolution of the VAE's decoder, in the shapes of program that it has there.

    False for float32, whose products have no fast kernel.
    """
    if dtype not in (torch.bfloat16, torch.float16) or not kernels_run_on(device, dtype):
        return False
    from .convolution import convolve

    def convolve_few() -> None:
        frames = torch.zeros(3, 18, 18, 128, device=device, dtype=dtype)
        for columns in (3, 128, 256):
            weight = torch.zeros(27 * 128, columns, device=device, dtype=dtype)
            convolve(frames, weight, None, frames.new_empty(1, 16, 16, columns), (3, 3, 3))

    return _runs("the VAE's own convolution", convolve_few)


def _runs(what: str, launch: Callable[[], object]) -> bool:
    """Whether a kernel compiles and runs; why not goes to the log. Running out of memory says nothing about it."""
    from triton.errors import TritonError

    try:
        launch()
    except torch.OutOfMemoryError:
        raise
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        logger.warning("FramePack: %s: off, plain torch is used. Triton says: %s", what, error)
        return False
    return True


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which is not always that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
