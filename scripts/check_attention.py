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
    parser.add_argument("--length", type=int, default=19229, help="tokens; 19229 is a section of 640x640")
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
    from framepack_pack.framepack_core.comfy_host.fp8_attention import attend_heads, fp8_attention
    from framepack_pack.framepack_core.model.fp8 import quantise_heads

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
    eight = [quantise_heads(x) for x in (q, k, v)]
    functions["FramePack 8-bit Attention"] = lambda: fp8_attention(q, k, v)
    functions["its product alone"] = lambda: attend_heads(*eight)
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
