"""What attention costs on this card: torch's backends, those the host has, and which one the pack takes.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/check_attention.py --json attention.json

Needs a CUDA card and an interpreter that has ComfyUI's requirements; no weights. The inputs are slices of one joint
buffer, as in the forward. Errors are those of the last 64 queries against float32.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark.meters import median_ms
from host_attach import attach_host
from torch import Tensor
from torch.nn import functional as F

HEADS, HEAD_DIM = 24, 128
QUERIES = 64


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    attach_host(arguments.host, cpu=False)
    torch.manual_seed(0)
    with torch.inference_mode():
        report = measure(arguments)
    flops = 4 * arguments.length**2 * HEADS * HEAD_DIM
    print(f"{report['card']}, torch {report['torch']}, {arguments.length} tokens; the pack takes: {report['choice']}")
    for row in report["rows"]:
        if "ms" in row:
            rate = flops / row["ms"] / 1e9
            print(f"{row['name']:32} {row['ms']:9.3f} ms {rate:7.0f} TFLOP/s, error {row['error']:.2e}")
        else:
            print(f"{row['name']:32} {row['failed']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--length", type=int, default=19232)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    return arguments


def measure(arguments: argparse.Namespace) -> dict:
    import comfy.cli_args
    import comfy.ldm.modules.attention as core
    from framepack_pack.framepack_core.comfy_host import attention_choice as choice

    joint = torch.randn(1, arguments.length, 3, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.transpose(1, 2) for x in joint.unbind(2))  # [1, heads, L, d], strides of the buffer
    backend = choice.measured_backend(q.device, q.dtype, choice.measured_length(arguments.length), HEAD_DIM)
    decided = choice.user_decided(comfy.cli_args.args, core.optimized_attention, {})
    functions: dict[str, Callable[[], Tensor]] = {
        "the pack (host_attention)": lambda: choice.host_attention(q, k, v, HEADS),
        "host's default": lambda: core.optimized_attention(q, k, v, HEADS, skip_reshape=True),
        "torch's default": lambda: F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),
    }
    for candidate in (*choice.TORCH_BACKENDS, choice.FLASH3):
        functions[candidate] = lambda candidate=candidate: choice.attend(q, k, v, candidate)
    functions[f"{choice.FLASH3}, fp8"] = lambda: flash3_fp8(q, k, v)
    for name, function in core.REGISTERED_ATTENTION_FUNCTIONS.items():
        if name not in ("pytorch", "sub_quad", "split"):  # the first is above, the others are for cards of old
            functions[f"host's {name}"] = lambda function=function: function(q, k, v, HEADS, skip_reshape=True)
    exact = F.scaled_dot_product_attention(q[:, :, -QUERIES:].float(), k.float(), v.float()).transpose(1, 2).flatten(2)
    rows = [{"name": name, **timed(function, exact, arguments.repeats)} for name, function in functions.items()]
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "host": str(arguments.host),
        "length": arguments.length,
        "choice": "what the user chose" if decided else choice.backend_name(backend),
        "rows": rows,
    }


def flash3_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-3 on fp8 with a scale for each head, quantising included.

    Keys are centred first, which changes no weight of a softmax (Zhang et al., SageAttention, arXiv 2410.02367).
    """
    from framepack_pack.framepack_core.comfy_host.attention_choice import flash3
    from framepack_pack.framepack_core.model.fp8 import quantise_rows

    centred = k - k.mean(dim=2, keepdim=True)
    rows = [quantise_rows(x.flatten(0, 1).flatten(1)) for x in (q, centred, v)]  # one for each head
    values = (row.values.view(x.shape) for row, x in zip(rows, (q, k, v), strict=True))
    names = ("q_descale", "k_descale", "v_descale")
    return flash3(*values, **{name: row.scales.view(q.shape[:2]) for name, row in zip(names, rows, strict=True)})


def timed(function: Callable[[], Tensor], exact: Tensor, repeats: int) -> dict[str, Any]:
    """Median milliseconds and |a - b| / |b|, or why it does not run."""
    try:
        out = function()
    except (RuntimeError, ValueError, ImportError, AssertionError) as error:
        return {"failed": str(error).splitlines()[0] if str(error) else type(error).__name__}
    error = float((out[:, -exact.shape[1] :].float() - exact).norm() / exact.norm())
    return {"ms": median_ms(function, repeats), "error": error}


if __name__ == "__main__":
    main()
