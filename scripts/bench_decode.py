"""Decoding with the full-size VAE and random weights through the host's VAE object, beside diffusers' VAE.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/bench_decode.py --json decode.json
    COMFYUI_PATH=... python3 scripts/bench_decode.py --modes sections:5 --variants plain channels_last+benchmark
    COMFYUI_PATH=... python3 scripts/bench_decode.py --cpu --errors vae.safetensors --film film.mp4

A mode is what FramePack Decode has: sections or whole, then chunk in latents, then tile in pixels (sections:5:256). A
variant is the decoder and what can be set on the VAE from outside: plain (our own decoder, on CUDA), less (with the
smallest pieces), host (the host's decoder), channels_last, benchmark (cuDNN's), fp16, fp32, or several joined by +.
Prints one JSON line for each pair and writes all with --json: ms per new frame of the second of two runs, peak memory
that torch allocated, the first run's seconds. diffusers' class decodes windows of 18 latents, 36 new frames each, as
the original does, in fp16, with and without its spatial tiles.

--errors prints the mean and largest difference from the host's whole decode, in levels of 255, for every mode, of
random latents or of a film that the VAE encodes.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from host_attach import attach_host
from torch import Tensor

MODES = ["sections", "whole", "whole:9"]
VARIANTS = ["plain", "less", "host"]
RUNGS = {"less": 1}  # of our own decoder's in the ladder, the first that is allowed
WINDOW = 9


def main() -> None:
    arguments = parse_arguments()
    attach_host(arguments.host, arguments.cpu)
    rows = []
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        if arguments.errors:
            results: Iterator[dict] = errors(arguments)
        else:
            results = speeds(arguments, Path(scratch) / "vae.safetensors")
        for row in results:
            rows.append(row)
            print(json.dumps(row), flush=True)
    report = {"machine": machine(arguments), "command": " ".join(sys.argv), "rows": rows}
    print(json.dumps(report["machine"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--size", type=int, default=640, help="pixels a side")
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--modes", nargs="*", default=MODES)
    parser.add_argument("--variants", nargs="*", default=VARIANTS)
    parser.add_argument("--width", type=int, default=128, help="channels at full resolution; 128 is full size")
    parser.add_argument("--no-reference", action="store_true", help="leave diffusers out")
    parser.add_argument("--cpu", action="store_true", help="to try the script without a card")
    parser.add_argument("--errors", type=Path, help="VAE file: measure differences instead of time")
    parser.add_argument("--film", type=Path, help="video whose first frames are encoded for --errors")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for 0.5 GB of random weights")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    return arguments


def speeds(arguments: argparse.Namespace, weights: Path) -> Iterator[dict]:
    """One row for every mode and variant, then diffusers."""
    from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_vae

    write_weights(weights, arguments.width)
    film = random_film(arguments.sections, arguments.size)
    for variant in arguments.variants:
        vae = load_vae(weights)
        apply_variant(vae, variant)
        for mode in arguments.modes:
            row = {"mode": mode, "variant": variant, "dtype": str(vae.vae_dtype)}
            with decoder_of(variant):
                yield {**row, **timed(partial(run, vae, film, mode))}
        torch.backends.cudnn.benchmark = False
        unload()
    yield difference(load_vae(weights), min(arguments.size, 256))
    unload()
    if not arguments.no_reference:
        for tiled in (False, True):
            yield reference(arguments, tiled)


def difference(vae: Any, size: int) -> dict:
    """Of our own decoder from the host's, over one section whole, in levels of 255.

    ComfyUI 0.3.75 takes the statistics of norms over all frames, later hosts over pieces of two latents, as ours does.
    """
    film, frames = random_film(1, size), []
    for variant in ("plain", "host"):
        with decoder_of(variant):
            frames.append(torch.cat([piece.clone() for piece in stream(vae, film, "whole")], dim=1))
    levels = (frames[0] - frames[1]).abs() * 255
    return {"mode": "whole", "variant": "plain - host", "mean": float(levels.mean()), "largest": float(levels.max())}


def write_weights(path: Path, width: int) -> None:
    """Random weights of the released architecture, by seed."""
    from framepack_pack.framepack_core.tiny_checkpoint import VaeSize, draw, vae_shapes
    from safetensors.torch import save_file

    shapes = vae_shapes(VaeSize((width, 2 * width, 4 * width, 4 * width), 2, 16))
    save_file({key: draw(key, shape, "bench").to(torch.bfloat16) for key, shape in shapes.items()}, path)


def random_film(sections: int, size: int) -> Any:
    from framepack_pack.framepack_core.generate import generate
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.section_plan import plan_forward

    start = torch.randn(1, 16, 1, size // 8, size // 8, generator=torch.manual_seed(0))
    history = new_history(plan_forward(sections, WINDOW), 0, size, size, start)
    return generate(history, lambda _section, _packed, noise: noise)


def apply_variant(vae: Any, variant: str) -> None:
    model = vae.first_stage_model
    for part in variant.split("+"):
        if part == "channels_last":
            model.to(memory_format=torch.channels_last_3d)
        elif part == "benchmark":
            torch.backends.cudnn.benchmark = True
        elif part in ("fp16", "fp32"):
            vae.vae_dtype = {"fp16": torch.float16, "fp32": torch.float32}[part]
            model.to(vae.vae_dtype)
        elif part not in ("plain", "host", *RUNGS):
            known = ", ".join(("plain", *RUNGS, "host", "channels_last", "benchmark", "fp16", "fp32"))
            raise SystemExit(f"{part} is no variant; known are {known}.")


@contextmanager
def decoder_of(variant: str) -> Iterator[None]:
    """Inside the with block films are decoded as the variant says."""
    from framepack_pack.framepack_core.comfy_host import vae_decoder

    before, parts = (vae_decoder.streams_on, vae_decoder.STREAMED), variant.split("+")
    if "host" in parts:
        vae_decoder.streams_on = lambda _device, _dtype: False
    vae_decoder.STREAMED = before[1][max(RUNGS.get(part, 0) for part in parts) :]
    try:
        yield
    finally:
        vae_decoder.streams_on, vae_decoder.STREAMED = before


def run(vae: Any, film: Any, mode: str, samples: Tensor | None = None) -> int:
    """Decode a film and throw its pieces away; the number of frames."""
    return sum(piece.shape[1] for piece in stream(vae, film, mode, samples))


def stream(vae: Any, film: Any, mode: str, samples: Tensor | None = None) -> Iterator[Tensor]:
    from framepack_pack.framepack_core.comfy_host import film_decoding

    name, chunk, tile = (mode + ":0:0").split(":")[:3]
    names = {"sections": film_decoding.SECTIONS, "whole": film_decoding.WHOLE}
    options = film_decoding.DecodeOptions(names[name], int(chunk), int(tile))
    return film_decoding.stream_frames(vae, film, samples, options).pieces


def timed(decode: Callable[[], int]) -> dict:
    """Twice: the first run finds algorithms, the second is measured. What ends it is reported in its place."""
    try:
        first = seconds(decode)[0]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        spent, frames = seconds(decode)
    except (RuntimeError, ValueError) as error:
        return {"failed": str(error).splitlines()[0]}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return {"ms_per_frame": 1000 * spent / frames, "frames": frames, "peak_gib": peak, "first_s": first}


def seconds(decode: Callable[[], int]) -> tuple[float, int]:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    begun = time.perf_counter()
    frames = decode()
    synchronise()
    return time.perf_counter() - begun, frames


def unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def reference(arguments: argparse.Namespace, tiled: bool) -> dict:
    """diffusers' VAE on the windows of the later sections: 18 latents for 36 new frames."""
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

    device = "cpu" if arguments.cpu else "cuda"
    dtype = torch.float32 if arguments.cpu else torch.float16  # the original's
    width = arguments.width
    with torch.device(device):
        build: Any = AutoencoderKLHunyuanVideo  # its annotations are too narrow
        vae = build(block_out_channels=(width, 2 * width, 4 * width, 4 * width)).to(dtype).eval()
    if tiled:
        vae.enable_tiling()
    cells = arguments.size // 8
    latents = torch.randn(1, 16, 2 * WINDOW, cells, cells, device=device, dtype=dtype)

    def decode() -> int:
        vae.decode(latents, return_dict=False)[0].float().cpu()
        return 4 * WINDOW

    mode = "diffusers, tiled" if tiled else "diffusers"
    return {"mode": mode, "variant": "plain", "dtype": str(dtype), **timed(decode)}


def errors(arguments: argparse.Namespace) -> Iterator[dict]:
    """How far every mode is from the host's decode of the whole film."""
    from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_vae
    from framepack_pack.framepack_core.history import film_latents

    vae = load_vae(arguments.errors)
    history, samples = random_film(arguments.sections, arguments.size), None
    if arguments.film:
        samples = encode(vae, arguments.film, arguments.sections, arguments.size)
    whole = vae.decode(film_latents(history) if samples is None else samples)
    for mode in arguments.modes:
        frames = torch.cat([piece.clone() for piece in stream(vae, history, mode, samples)], dim=1)
        difference = (frames - whole).abs() * 255
        yield {"mode": mode, "mean": float(difference.mean()), "largest": float(difference.max())}


def encode(vae: Any, path: Path, sections: int, size: int) -> Tensor:
    """The first frames of a video, resized, as latents."""
    import av

    wanted, frames = 4 * WINDOW * sections + 1, []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24", width=size, height=size)))
            if len(frames) == wanted:
                return vae.encode(torch.stack(frames).float() / 255)
    raise SystemExit(f"{path} has {len(frames)} frames, {sections} sections need {wanted}; lower --sections.")


def machine(arguments: argparse.Namespace) -> dict:
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "comfyui": (arguments.host / "comfyui_version.py").read_text().split('"')[-2],
        "size": arguments.size,
        "sections": arguments.sections,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
