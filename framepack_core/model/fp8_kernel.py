"""Row-wise quantisation to 8-bit float in one pass: one read of the activations, one write of half the size.

Its reference is fp8.quantise_rows_eager, which also runs where Triton does not.
"""

# Triton's own language:
# pyright: reportOptionalMemberAccess=false, reportCallIssue=false, reportInvalidTypeForm=false

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU, MPS, and AMD or Windows without Triton
    triton = tl = None

LONGEST_ROW = 32768  # one program holds a whole row


def serves(x: Tensor) -> bool:
    """Whether the kernel takes this matrix, and the card knows the format (compute capability 8.9)."""
    if triton is None or not x.is_cuda or torch.version.hip or torch.cuda.get_device_capability(x.device) < (8, 9):
        return False
    return x.ndim == 2 and x.stride(1) == 1 and x.shape[1] <= LONGEST_ROW


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] with rows of stride 1 -> values [N, K] float8_e4m3fn, scales [N, 1] float32."""
    rows, columns = x.shape
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(columns)
    with torch.cuda.device(x.device) if x.is_cuda else torch.no_grad():
        _quantise_row[(rows,)](x, values, scales, x.stride(0), columns, BLOCK=block, num_warps=8 if block > 4096 else 4)
    return values, scales


if triton is not None:

    @triton.jit
    def _quantise_row(x, values, scales, row_stride, columns, BLOCK: tl.constexpr):  # noqa: N803
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < columns
        given = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(tl.max(tl.abs(given), axis=0), 1e-12)
        tl.store(values + row * columns + column, (given * (448.0 / largest)).to(tl.float8e4nv), mask=inside)
        tl.store(scales + row, largest / 448.0)
