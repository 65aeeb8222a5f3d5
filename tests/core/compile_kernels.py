"""Compiles every kernel for cards that are not there: `python tests/core/compile_kernels.py`, without TRITON_INTERPRET.

The interpreter runs Python, and lets pass what the compiler refuses. Launches are caught and their kernels compiled for
the types of their arguments; nothing runs.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from host_attach import name_pack

name_pack()
from framepack_pack.framepack_core.kernels import convolution, fp8_heads, fp8_rows, gelu, heads, norm, rows  # noqa: E402

AMPERE, HOPPER = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv"}


def type_of(value: Any) -> str:
    """Of an argument that is no constant, in the words of Triton's signatures."""
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_for(target: GPUTarget, kernel: JITFunction, arguments: tuple, named: dict[str, Any]) -> None:
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    given.update((name, named.pop(name)) for name in kernel.arg_names if name in named)
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    signature = {name: "constexpr" if name in constants else type_of(value) for name, value in given.items()}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options=named)
    sys.stdout.write(f"{kernel.__name__} sm{target.arch} {len(compiled.asm['cubin'])} bytes\n")


def launches(dtype: torch.dtype) -> None:
    """Every function that launches kernels, but for convolutions and 8 bit, in the sizes of the model."""
    x = torch.zeros(1, 9, 3072, dtype=dtype)
    vector, hidden, head = x[:, :1], torch.zeros(1, 9, 12288, dtype=dtype), x.view(1, 9, 24, 128)
    table = torch.zeros(8, 64)
    rows.modulated_norm(x, vector, vector, 1e-6)
    rows.gated_sum(x, x, vector)
    rows.gated_norm(x, x, vector, vector, vector, 1e-6)
    gelu.gelu(hidden)
    gelu.joined_gelu(x, hidden)
    heads.normed_rotation(head, x[0, 0, :128], table, table, 1e-6)
    heads.normed_rotation(head, x[0, 0, :128], None, None, 1e-6)
    norm.channel_sums(x[0, :, :128].contiguous())
    frames = torch.zeros(3, 18, 18, 128, dtype=dtype)
    norm.padded(frames, (table[0], table[0]), torch.zeros(3, 20, 20, 128, dtype=dtype))
    norm.padded(frames, None, torch.zeros(3, 20, 20, 128, dtype=dtype))


def convolutions(dtype: torch.dtype, *shapes: convolution.Launch) -> None:
    """In the shapes of program that a card has."""
    frames = torch.zeros(3, 18, 18, 128, dtype=dtype)
    for columns, launch in zip((3, 128, 256), (convolution.NARROW, *shapes), strict=False):
        weight, out = torch.zeros(27 * 128, columns, dtype=dtype), frames.new_empty(1, 16, 16, columns)
        convolution.convolve(frames, weight, weight[0], out, (3, 3, 3), residual=out, launch=launch)


def main() -> None:
    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        compile_for(target, kernel, arguments, named)

    JITFunction.run = run
    target = AMPERE
    launches(torch.float16)
    convolutions(torch.float16, convolution.COMMON)
    target = HOPPER
    launches(torch.bfloat16)
    convolutions(torch.bfloat16, *convolution.HOPPER)
    wide = torch.zeros(9, 15360, dtype=torch.bfloat16)
    fp8_rows.quantise(wide)
    fp8_heads.quantise(wide[:, :3072].view(1, 9, 24, 128))


if __name__ == "__main__":
    main()
