"""What step tables cost and save at full 13B size with random weights, through a real ComfyUI MODEL.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/bench_tables.py --json tables.json

Measures: seconds to make the tables of a prompt (the first, and another one), memory before, at the peak of and after
sampling, whether a film's section has the same bits without tables, whether MLPs in pieces have, and where a step waits
for the device. Needs a CUDA card with about 24 GB free and 60 GB of RAM.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from bench_section import IMAGE_TOKENS, TEXT_TOKENS, attach_host, machine, write_weights
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--steps", type=int, default=25, help="length of the schedule whose tables are made")
    parser.add_argument("--compared", type=int, default=4, help="steps of the sections that are compared bit by bit")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for 26 GB of random weights")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    attach_host(arguments.host)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, torch.inference_mode():
        weights = Path(scratch) / "framepack_random.safetensors"
        write_weights(weights)
        report = {"machine": machine(arguments.host), "command": " ".join(sys.argv), **measure(weights, arguments)}
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def measure(weights: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
    from framepack_pack.framepack_core.model.step_table import StepTable
    from framepack_pack.framepack_core.model.transformer import FramePackTransformer

    torch.cuda.empty_cache()
    model = load_transformer(weights)
    made: list[dict[str, float]] = []
    right_inputs, right_velocity = FramePackTransformer.step_inputs, FramePackTransformer.velocity

    def timed(self: Any, timesteps: Any, *args: Any, **kwargs: Any) -> Any:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        out = right_inputs(self, timesteps, *args, **kwargs)
        torch.cuda.synchronize()
        made.append({"levels": len(timesteps), "seconds": time.perf_counter() - begun})
        return out

    FramePackTransformer.step_inputs = timed
    torch.cuda.reset_peak_memory_stats()
    tabled = section(model, arguments, arguments.compared)
    report: dict[str, Any] = {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "between_sections_gib": torch.cuda.memory_allocated() / 2**30,
        "shelved_gib": shelved_gib(model),
    }
    section(model, arguments, arguments.steps, prompt=2, only_first=True)
    section(model, arguments, arguments.steps, prompt=3, only_first=True)
    report["tables"] = list(made)

    def forgetting(_table: Any, _prompt: Any, timestep: float, _schedule: Any, make: Any) -> Any:
        return make([timestep])[0]

    right_look_up, StepTable.look_up = StepTable.look_up, forgetting
    report["same_bits_without_tables"] = torch.equal(section(model, arguments, arguments.compared), tabled)
    StepTable.look_up = right_look_up

    def in_pieces(self: Any, x: Any, step: Any, place: Any, options: Any, _piece: Any) -> Any:
        return right_velocity(self, x, step, place, options, 4096)

    FramePackTransformer.velocity = in_pieces
    pieces = section(model, arguments, arguments.compared)
    FramePackTransformer.velocity = right_velocity
    report["pieces_of_4096"] = {
        "same_bits": torch.equal(pieces, tabled),
        "relative_l2": float((pieces - tabled).norm() / tabled.norm()),
    }
    FramePackTransformer.step_inputs = right_inputs
    report["waits"] = waits(model, arguments)
    return report


class Enough(Exception):  # noqa: N818
    """Ends a section after its first step."""


def section(
    model: Any, arguments: argparse.Namespace, steps: int, prompt: int = 1, only_first: bool = False
) -> Tensor | None:
    """A section by FramePack's sampler; prompt seeds what it is told."""
    from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, host_denoise, unipc_sampler
    from framepack_pack.framepack_core.generate import run_section
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.schedule import section_sigmas
    from framepack_pack.framepack_core.section_plan import plan_backward

    told = torch.Generator().manual_seed(prompt)
    start = torch.randn(1, 16, 1, arguments.height // 8, arguments.width // 8, generator=told)
    embeds = torch.randn(1, IMAGE_TOKENS, 1152, generator=told)
    history = new_history(plan_backward(4, 9), 0, 0, 0, start, image_embeds=embeds)
    text = torch.randn(1, TEXT_TOKENS, 4096, generator=told)
    positive = [[text, {"pooled_output": torch.randn(1, 768, generator=told)}]]
    sampling = Sampling(unipc_sampler(), section_sigmas(history, steps), 1.0, 0.0)
    if not only_first:
        return run_section(history, host_denoise(model, positive, None, history, sampling, 1)).sections[-1]
    short = model.clone()

    def end(*_args: Any, **_kwargs: Any) -> Tensor:
        raise Enough

    short.add_wrapper_with_key("diffusion_model", "bench", end)
    try:
        run_section(history, host_denoise(short, positive, None, history, sampling, 1))
    except Enough:
        return None
    raise RuntimeError("the section ended without a call of the model")


def waits(model: Any, arguments: argparse.Namespace) -> list[str]:
    """Where torch says that a call of the model after the first waited for the device."""
    watched = model.clone()
    calls = []

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        torch.cuda.set_sync_debug_mode("warn" if len(calls) > 1 else "default")
        try:
            return executor(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    watched.add_wrapper_with_key("apply_model", "bench", watch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        section(watched, arguments, 3)
    return sorted({f"{w.filename}:{w.lineno} {w.message}" for w in caught if "synchroniz" in str(w.message)})


def shelved_gib(model: Any) -> float:
    from framepack_pack.framepack_core.comfy_host.shelf import shelved_bytes

    return shelved_bytes(model.model) / 2**30


if __name__ == "__main__":
    main()
