"""Whether the kernels can run on a device, found out once by running the smallest of them."""

import contextlib
import functools
import logging
import subprocess
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
        from triton.errors import TritonError

        from .gelu import gelu
    except ImportError as error:
        logger.info("FramePack: no fused kernels, plain torch is used (%s)", error)
        return False
    try:
        gelu(torch.zeros(1, 1, 16, device=device, dtype=dtype))
    except torch.OutOfMemoryError:
        raise
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        logger.warning("FramePack: fused kernels are off, plain torch is used. Triton says: %s", error)
        return False
    return True


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which is not always that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
