"""The fused kernels on this card: beside exact values, beside plain torch, and beside the card's bandwidth.

    python3 scripts/check_kernels.py --json kernels.json
    python3 scripts/check_kernels.py --sweep            # also other launch shapes, to choose the defaults by

Needs a CUDA card with about 8 GB free and Triton; no ComfyUI, no weights. Exit status 1 when a kernel is farther
from the exact value than plain torch is, or when the functions of model/elementwise.py do not use it.
"""

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark.meters import median_ms
from host_attach import name_pack
from torch import Tensor

name_pack()

from framepack_pack.framepack_core.kernels import heads, rows  # noqa: E402
from framepack_pack.framepack_core.kernels.gelu import gelu, joined_gelu  # noqa: E402
from framepack_pack.framepack_core.model import elementwise  # noqa: E402
from framepack_pack.framepack_core.model.rope import Rotation  # noqa: E402

WIDTH, MLP, HEADS, DIM = 3072, 12288, 24, 128  # of the released model
TEXT = 857  # tokens without rotation at 640x640
ODD = [(1, 1, 16), (2, 7, 100), (3, 33, 1000), (1, 9, 5120)]  # B, L, D
SLACK = 1.01  # an error is called worse than another when it exceeds it by a percent
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}  # at most, when rounded once
MANY = 1_000_000
EPS = elementwise.NORM_EPS


class Case(NamedTuple):
    """One function on one set of inputs."""

    name: str
    fused: Callable[..., Any]  # of inputs, and of launch settings by name
    eager: Callable[..., Any]
    dispatched: Callable[..., Any]
    inputs: tuple
    bytes: int  # read and written when everything is touched once


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    with torch.inference_mode():
        real = [measure(case, arguments) for case in cases(1, arguments.length, WIDTH, MLP, torch.bfloat16)]
        odd = [
            {"dtype": str(dtype), "size": size, **compare(case)}
            for dtype, size in itertools.product((torch.bfloat16, torch.float16, torch.float32), ODD)
            for case in cases(*size, 4 * size[-1], dtype)
        ]
        large = [] if arguments.no_large else check_large()
        report = {
            "machine": machine(),
            "copy_gb_s": copy_bandwidth(arguments),
            "real": real,
            "odd": odd,
            "large": large,
        }
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    sys.exit(0 if all(row["ok"] for row in (*real, *odd, *large)) else 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=19257, help="tokens; 19257 is a section of 640x640")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--sweep", action="store_true", help="time other rows and warps per program")
    parser.add_argument("--no-large", action="store_true", help="leave out tensors of more than 2^31 elements (9 GB)")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


def cases(batch: int, length: int, width: int, mlp: int, dtype: torch.dtype) -> list[Case]:
    """All functions at one size. Inputs are slices of wider buffers, as in the forward."""
    text = min(TEXT, length // 3)
    count, dim = (HEADS, DIM) if width == WIDTH else (3, max(2, width // 6 * 2))
    x, branch = (random(batch, length + 2, width, dtype=dtype)[:, 1:-1] for _ in range(2))
    gate, shift, scale = random(batch, 1, 6 * width, dtype=dtype).mul(0.3).chunk(6, dim=-1)[:3]
    hidden = random(batch, length, mlp, dtype=dtype)
    qkv = random(batch, length, 3, count, dim, dtype=dtype)
    weight = 1 + 0.1 * random(dim, dtype=dtype)
    angle = random(1, 1, length - text, dim // 2, dtype=torch.float32)
    rotation = Rotation(angle.cos(), angle.sin())
    unit, vectors, row = x.element_size(), (shift, scale), batch * length * width

    def fused_rotation(x: Tensor, weight: Tensor, rotation: Rotation, **launch: Any) -> Tensor:
        return heads.normed_rotation(x, weight, rotation.cos[0, 0], rotation.sin[0, 0], EPS, **launch)

    def with_eps(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs, **launch: function(*inputs, EPS, **launch)

    return [
        Case(
            "modulated_norm",
            with_eps(rows.modulated_norm),
            elementwise.eager_modulated_norm,
            elementwise.modulated_norm,
            (x, *vectors),
            2 * row * unit,
        ),
        Case(
            "gated_sum",
            rows.gated_sum,
            elementwise.eager_gated_sum,
            elementwise.gated_sum,
            (x, branch, gate),
            3 * row * unit,
        ),
        Case(
            "gated_norm",
            with_eps(rows.gated_norm),
            elementwise.eager_gated_norm,
            elementwise.gated_norm,
            (x, branch, gate, *vectors),
            4 * row * unit,
        ),
        Case("gelu", gelu, elementwise.eager_gelu, elementwise.gelu, (hidden,), 2 * hidden.numel() * unit),
        Case(
            "joined_gelu",
            joined_gelu,
            elementwise.eager_joined_gelu,
            elementwise.joined_gelu,
            (branch, hidden),
            2 * (row + hidden.numel()) * unit,
        ),
        Case(
            "normed_rotation",
            fused_rotation,
            with_eps(elementwise.eager_normed_rotation),
            with_eps(elementwise.normed_rotation),
            (qkv[:, :, 1], weight, rotation),
            2 * qkv[:, :, 1].numel() * unit + 2 * 4 * rotation.cos.numel(),
        ),
    ]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)


def compare(case: Case) -> dict:
    """Errors of the kernel and of plain torch against the same maths in higher precision, as |a - b| / |b|."""
    exact = last(case.eager(*[higher(x) for x in case.inputs])).clone()
    kernel_error = error(last(case.fused(*case.inputs)), exact)
    eager_error = error(last(case.eager(*case.inputs)), exact)
    used = torch.equal(last(case.dispatched(*case.inputs)).clone(), last(case.fused(*case.inputs)))
    few = case.inputs[0].numel() < MANY  # where the errors of single elements do not average out
    once = ROUNDING[case.inputs[0].dtype]
    bound = max(SLACK * eager_error, once) if few or once == ROUNDING[torch.float32] else SLACK * eager_error
    return {
        "name": case.name,
        "kernel_error": kernel_error,
        "eager_error": eager_error,
        "used_by_elementwise": used,
        "ok": used and kernel_error <= bound,
    }


def higher(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x  # rotation tables are float32 already
    return x.double() if x.dtype == torch.float32 else x.float()


def last(result: Any) -> Tensor:
    """The tensor that depends on everything: of gated_norm the second."""
    return result[-1] if isinstance(result, tuple) else result


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.to(exact.dtype) - exact).norm() / exact.norm())


def measure(case: Case, arguments: argparse.Namespace) -> dict:
    row = compare(case)
    if case.name == "gated_norm":  # one pass or two must not change a bit
        residual, branch, gate, shift, scale = case.inputs
        total, normed = case.fused(*case.inputs)
        row["ok"] &= torch.equal(total, elementwise.gated_sum(residual, branch, gate))
        row["ok"] &= torch.equal(normed, elementwise.modulated_norm(total, shift, scale))
    row["ms"] = median_ms(lambda: case.fused(*case.inputs), arguments.repeats)
    row["eager_ms"] = median_ms(lambda: case.eager(*case.inputs), arguments.repeats)
    row["gb_s"] = case.bytes / row["ms"] / 1e6
    if arguments.sweep:
        row["sweep"] = {}
        per_program = (None,) if case.name in ("gelu", "joined_gelu", "normed_rotation") else (1, 2, 4, 8)
        for count, warps in itertools.product(per_program, (2, 4, 8, 16)):
            launch = {"warps": warps} if count is None else {"rows": count, "warps": warps}
            ms = median_ms(lambda launch=launch: case.fused(*case.inputs, **launch), arguments.repeats)
            row["sweep"][" ".join(f"{key}={value}" for key, value in launch.items())] = ms
    return row


def copy_bandwidth(arguments: argparse.Namespace) -> float:
    """Bytes read and written by a copy of one residual stream, GB/s."""
    source = random(1, arguments.length, WIDTH, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), arguments.repeats)
    return 2 * source.numel() * source.element_size() / ms / 1e6


def check_large() -> list[dict]:
    """The last rows of tensors of more than 2^31 elements, where 32-bit offsets would wrap."""
    out = []
    for name, width in (("modulated_norm", WIDTH), ("gelu", MLP)):
        length = 2**31 // width + 100
        x = torch.zeros(1, length, width, device="cuda", dtype=torch.bfloat16)
        x[:, -50:] = random(1, 50, width, dtype=torch.bfloat16)
        vector = random(1, 1, width, dtype=torch.bfloat16)
        inputs = (vector, vector) if name == "modulated_norm" else ()
        function = getattr(elementwise, name)
        same = torch.equal(function(x, *inputs)[:, -50:], function(x[:, -50:], *inputs))
        out.append({"name": name, "elements": x.numel(), "ok": same})
        del x
        torch.cuda.empty_cache()
    return out


def machine() -> dict:
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(sys.argv),
    }


def print_report(report: dict) -> None:
    print(f"{report['machine']['card']}, torch {report['machine']['torch']}, copy {report['copy_gb_s']:.0f} GB/s")
    print(f"{'':16} {'ms':>8} {'eager':>8} {'times':>6} {'GB/s':>6} {'of copy':>8} {'error':>10} {'eager':>10}")
    for row in report["real"]:
        print(
            f"{row['name']:16} {row['ms']:8.4f} {row['eager_ms']:8.4f} {row['eager_ms'] / row['ms']:6.1f} "
            f"{row['gb_s']:6.0f} {row['gb_s'] / report['copy_gb_s']:8.2f} {row['kernel_error']:10.2e} "
            f"{row['eager_error']:10.2e}{'' if row['ok'] else '  FAILED'}"
        )
        for launch, ms in sorted(row.get("sweep", {}).items(), key=lambda item: item[1])[:4]:
            print(f"    {launch:20} {ms:8.4f} ms")
    failed = [row for row in (*report["odd"], *report["large"]) if not row["ok"]]
    print(f"odd shapes and large tensors: {len(report['odd']) + len(report['large'])} cases, {len(failed)} failed")
    for row in failed:
        print("   ", row)


if __name__ == "__main__":
    main()
