"""Ways to compute the VAE decoder's causal convolutions on this card, at the shapes of a decode at 640x640.

    python3 scripts/check_convolutions.py --json convolutions.json

Needs a CUDA card with about 20 GB free and Triton; no ComfyUI, no weights. Every way takes bfloat16 frames that are
already padded (one pixel, two carried frames) in the memory order that it likes, and prints ms, TFLOP/s of the 27 taps
and the largest error, as a part of the largest value, from conv3d in float32. What fails is printed as failed. Then
group norm with SiLU, and the middle's attention over 9 and 18 latents. Stops starting new work after --seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark.meters import median_ms
from host_attach import name_pack
from torch import Tensor

name_pack()

from framepack_pack.framepack_core.kernels.convolution import Launch, convolve  # noqa: E402
from framepack_pack.framepack_core.kernels.norm import channel_sums, padded  # noqa: E402

SHAPES = [  # name, input channels, output channels, pixels a side, output frames a call
    ("level 0", 128, 128, 640, (2, 1, 4, 8)),
    ("upsampler 1", 256, 256, 640, (2, 4)),
    ("level 0, first", 256, 128, 640, (2, 1, 4)),
    ("level 1", 256, 256, 320, (2, 1, 4)),
    ("upsampler 2", 512, 512, 320, (2, 4)),
    ("level 2", 512, 512, 160, (2, 4)),
    ("level 3", 512, 512, 80, (2, 9)),
    ("level 1, first", 512, 256, 320, (2,)),
]
LAUNCHES = [
    Launch(128, 128, 64, 8, 3),
    Launch(128, 128, 64, 4, 3),
    Launch(128, 128, 64, 4, 4),
    Launch(128, 256, 64, 8, 3),
    Launch(256, 128, 64, 8, 3),
    Launch(128, 128, 32, 4, 4),
    Launch(128, 128, 64, 8, 3, True),
    Launch(128, 128, 64, 8, 4, True),
    Launch(128, 256, 64, 8, 3, True),
    Launch(128, 256, 64, 8, 4, True),
    Launch(256, 128, 64, 8, 3, True),
    Launch(256, 128, 64, 8, 4, True),
]
REPEATS = 4
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # the interpreter has no product of bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, to try the script without a card")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cpu" if arguments.cpu else "cuda"
    rows: list[dict] = []
    ends = time.monotonic() + arguments.seconds

    def save() -> None:
        if arguments.json:
            card = "none" if arguments.cpu else torch.cuda.get_device_name()
            report = {
                "machine": {"card": card, "torch": torch.__version__, "command": " ".join(sys.argv)},
                "rows": rows,
            }
            arguments.json.write_text(json.dumps(report, indent=2))

    with torch.inference_mode():
        for work in works(device, arguments.cpu):
            if time.monotonic() > ends:
                print("time is up; the rest was not started")
                break
            for row in work():
                rows.append(row)
                print_row(row)
                save()
                if time.monotonic() > ends:
                    break
            if not arguments.cpu:
                torch.cuda.empty_cache()
    save()


def works(device: str, tiny: bool) -> Iterator[Callable[[], Iterator[dict]]]:
    """Everything that is measured, the most telling first."""
    shrink, fewer = (40, 8) if tiny else (1, 1)
    best: dict[tuple, list[Launch]] = {}
    for name, channels, columns, side, counts in SHAPES:
        yield partial(convolutions, name, channels // fewer, columns // fewer, side // shrink, counts[0], device, best)
    yield partial(norms, 128 // fewer, 640 // shrink, 8, device)
    for latents in (9, 18):
        yield partial(attentions, latents, 512 // fewer, 80 // shrink, device)
    for name, channels, columns, side, counts in SHAPES:
        for count in counts[1:]:
            yield partial(convolutions, name, channels // fewer, columns // fewer, side // shrink, count, device, best)


def convolutions(
    name: str, channels: int, columns: int, side: int, count: int, device: str, best: dict[tuple, list[Launch]]
) -> Iterator[dict]:
    """All ways at one shape. best: (C, O) -> launches of the kernel, tried at the first number of frames."""
    frames = torch.randn(count + 2, side, side, channels, device=device).to(DTYPE)
    frames = F.pad(frames.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1).contiguous()
    weight = (torch.randn(columns, channels, 3, 3, 3, device=device) / (27 * channels) ** 0.5).to(DTYPE)
    bias = torch.randn(columns, device=device).to(DTYPE)
    exact = F.conv3d(frames[:3].permute(3, 0, 1, 2)[None].float(), weight.float(), bias.float())[0]
    exact = exact.permute(1, 2, 3, 0)  # the first frame [1, H, W, O]
    setting = {"shape": name, "C": channels, "O": columns, "side": side, "frames": count}
    flops = 54 * channels * columns * side * side * count

    def row(way: str, function: Callable[[], Tensor], **more: Any) -> dict:
        """function -> frames [F, H, W, O] in any strides."""
        return {**setting, "way": way, **more, **measured(function, exact, flops)}

    packed = weight.permute(2, 3, 4, 1, 0).reshape(-1, columns).contiguous()
    out = torch.empty(count, side, side, columns, device=device, dtype=DTYPE)
    known = best.get((channels, columns, side))
    results = []
    for launch in known or LAUNCHES:
        result = row(
            "triton", partial(convolve, frames, packed, bias, out, (3, 3, 3), launch=launch), launch=list(launch)
        )
        results.append((result.get("ms", float("inf")), launch))
        yield result
    ordered = [launch for _, launch in sorted(results, key=lambda pair: pair[0])]
    best.setdefault((channels, columns, side), ordered[:2])
    launch = ordered[0]
    residual = torch.zeros_like(out)
    more = {"launch": list(launch)}
    yield row(
        "triton, + residual",
        partial(convolve, frames, packed, bias, out, (3, 3, 3), residual=residual, launch=launch),
        **more,
    )
    del residual
    if known is None and name.startswith("upsampler"):
        yield {
            **row("triton, eight phases from half the size", phases(frames, packed, bias, out, launch)),
            "error": None,
        }
    yield from libraries(row, frames, weight, bias, known is None)


def phases(frames: Tensor, packed: Tensor, bias: Tensor, out: Tensor, launch: Launch) -> Callable[[], Tensor]:
    """The cost of a convolution of frames doubled in all three directions, as eight of 2x2x2 taps; not its values."""
    half = frames[: 1 + out.shape[0] // 2, : out.shape[1] // 2 + 2, : out.shape[2] // 2 + 2].contiguous()
    merged = packed[: 8 * frames.shape[-1]].contiguous()

    def run() -> Tensor:
        for a in (0, 1):
            for b in (0, 1):
                for t in (0, 1):
                    convolve(half, merged, bias, out[t::2, a::2, b::2], (2, 2, 2), start=(a, b), launch=launch)
        return out

    return run


def libraries(row: Callable[..., dict], frames: Tensor, weight: Tensor, bias: Tensor, search: bool) -> Iterator[dict]:
    """conv3d and conv2d of cuDNN, with its heuristics and (search) with its benchmark."""
    count = frames.shape[0] - 2
    planes = frames.permute(0, 3, 1, 2)  # [F + 2, C, H, W], channels last
    volume = frames.permute(3, 0, 1, 2)[None]
    taps = [weight[:, :, t].contiguous(memory_format=torch.channels_last) for t in range(3)]
    joined = torch.cat([weight[:, :, t] for t in range(3)], 1).contiguous(memory_format=torch.channels_last)
    last_3d = weight.contiguous(memory_format=torch.channels_last_3d)

    def three() -> Tensor:
        total = F.conv2d(planes[:count], taps[0], bias)
        total += F.conv2d(planes[1:-1], taps[1])
        total += F.conv2d(planes[2:], taps[2])
        return total.permute(0, 2, 3, 1)

    def one() -> Tensor:
        wide = torch.cat([frames[:count], frames[1:-1], frames[2:]], -1).permute(0, 3, 1, 2)
        return F.conv2d(wide, joined, bias).permute(0, 2, 3, 1)

    def conv3d(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv3d(x, kernel, bias)[0].permute(1, 2, 3, 0)

    plain = volume.contiguous()
    ways = {
        "conv3d": partial(conv3d, plain, weight),
        "conv3d channels last": partial(conv3d, volume, last_3d),
        "three conv2d": three,
        "one conv2d of joined frames": one,
    }
    for benchmark in (False, True) if search else (False,):
        torch.backends.cudnn.benchmark = benchmark
        for way, function in ways.items():
            yield row(way + (", benchmark" if benchmark else ""), function)
    torch.backends.cudnn.benchmark = False


def norms(channels: int, side: int, count: int, device: str) -> Iterator[dict]:
    """Group norm over 32 groups and SiLU of a piece of frames, padded by one pixel for the next convolution."""
    x = torch.randn(count, side, side, channels, device=device).to(DTYPE) + 1
    groups = min(32, channels)
    weight, bias = torch.ones(channels, device=device).to(DTYPE), torch.zeros(channels, device=device).to(DTYPE)
    volume = x.permute(3, 0, 1, 2)[None].contiguous()
    out = torch.empty(count, side + 2, side + 2, channels, device=device, dtype=DTYPE)
    exact = F.silu(F.group_norm(volume.float(), groups))[0, :, :1].permute(1, 2, 3, 0)

    def eager() -> Tensor:
        normed = F.silu(F.group_norm(volume, groups, weight, bias, 1e-6), inplace=True)
        return F.pad(normed, (1, 1, 1, 1, 0, 0), mode="replicate")[0, :, :, 1:-1, 1:-1].permute(1, 2, 3, 0)

    def fused(rows: int, warps: int, per: int) -> Tensor:
        sums, squares = channel_sums(x.view(-1, channels), rows, warps)
        number = x.numel() // groups
        mean = sums.view(groups, -1).sum(1) / number
        rate = (squares.view(groups, -1).sum(1) / number - mean**2 + 1e-6).rsqrt()
        scale = rate.repeat_interleave(channels // groups)
        shift = -mean.repeat_interleave(channels // groups) * scale
        return padded(x, (scale.float(), shift.float()), out, rows=per)[:, 1:-1, 1:-1]

    def sums_only(rows: int, warps: int) -> Tensor:
        return channel_sums(x.view(-1, channels), rows, warps)[0]

    setting = {"shape": "group norm + SiLU", "C": channels, "side": side, "frames": count}
    yield {**setting, "way": "torch, NCDHW", **measured(eager, exact, 0)}
    for rows, warps, per in ((256, 4, 8), (1024, 4, 16), (256, 8, 32), (1024, 8, 64)):
        function = partial(fused, rows, warps, per)
        yield {**setting, "way": "triton", "launch": [rows, warps, per], **measured(function, exact, 0)}
        yield {
            **setting,
            "way": "triton, sums",
            "launch": [rows, warps],
            **measured(partial(sums_only, rows, warps), None, 0),
        }


def attentions(latents: int, channels: int, side: int, device: str) -> Iterator[dict]:
    """One head of all tokens of a call, without a mask."""
    length = latents * side * side
    q, k, v = (torch.randn(1, 1, length, channels, device=device).to(DTYPE) for _ in range(3))
    keys, values = k[0, 0].T.contiguous(), v[0, 0]

    def blocks(size: int) -> Tensor:
        out = torch.empty_like(q[0, 0])
        for start in range(0, length, size):
            scores = (q[0, 0, start : start + size] * channels**-0.5) @ keys
            out[start : start + size] = torch.softmax(scores, -1) @ values
        return out

    setting = {"shape": "attention", "C": channels, "side": side, "frames": latents}
    flops = 4 * length * length * channels
    sdpa = partial(F.scaled_dot_product_attention, q, k, v)
    yield {**setting, "way": "sdpa", **measured(sdpa, None, flops)}
    for size in (512, 2048):
        yield {**setting, "way": "blocks of queries", "launch": [size], **measured(partial(blocks, size), None, flops)}


def measured(function: Callable[[], Tensor], exact: Tensor | None, flops: int) -> dict:
    """Time of one call, and its error in the first frame; or why there is none."""
    try:
        got = function()
        error = None
        if exact is not None:
            error = float((got[:1].float() - exact).abs().max() / exact.abs().max())
        del got
        ms = median_ms(function, REPEATS)
    except Exception as problem:  # noqa: BLE001 - a candidate that fails in any way is a result here
        return {"failed": f"{type(problem).__name__}: {problem}".splitlines()[0][:200]}
    return {"ms": ms, "tflops": flops / ms / 1e9, "error": error}


def print_row(row: dict) -> None:
    shape = f"{row['shape']} {row['C']}->{row.get('O', row['C'])} at {row['side']}, {row['frames']} frames"
    launch = "/".join(map(str, row["launch"])) if "launch" in row else ""
    if "failed" in row:
        print(f"{shape:44} {row['way']:40} {launch:24} FAILED {row['failed']}", flush=True)
        return
    error = "" if row["error"] is None else f"{row['error']:.1e}"
    print(
        f"{shape:44} {row['way']:40} {launch:24} {row['ms']:9.3f} ms {row['tflops']:7.1f} TFLOP/s {error}", flush=True
    )


if __name__ == "__main__":
    main()
