"""One section at full 13B size with random weights, through a real ComfyUI MODEL, beside a reference.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/bench_section.py --reference diffusers
    COMFYUI_PATH=... python3 scripts/bench_section.py --reference /path/to/FramePack

Needs a CUDA card with about 30 GB free and 60 GB of RAM; run it with an interpreter that has ComfyUI's
requirements. The reference is diffusers' HunyuanVideoFramepackTransformer3DModel, or the original's class
from a checkout of lllyasviel/FramePack. Both get the same weights, and the inputs that our module had at some
of the steps. Prints a table and, with --json, writes it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TEXT_TOKENS, IMAGE_TOKENS = 100, 729


def main() -> None:
    arguments = parse_arguments()
    attach_host(arguments.host)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, torch.inference_mode():
        weights = Path(scratch) / "framepack_random.safetensors"
        write_weights(weights)
        rows, inputs, outputs = run_ours(weights, arguments)
        for reference in arguments.reference:
            rows.append(run_reference(reference, weights, inputs, outputs, arguments.steps))
    report = {"machine": machine(arguments.host), "command": " ".join(sys.argv), "rows": rows}
    print_table(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--reference", nargs="*", default=["diffusers"], help="'diffusers' or a FramePack checkout")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--compared", type=int, nargs="*", default=[0, 12, 24], help="steps whose outputs are compared")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for 26 GB of random weights")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    return arguments


def attach_host(host: Path) -> None:
    """Make ComfyUI importable, and the pack under an alias (our folder `nodes` would hide ComfyUI's module)."""
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.cli_args  # noqa: F401

    sys.argv = arguments
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack


def write_weights(file: Path) -> None:
    """Random bf16 weights of the released sizes; q/k norms about 1.5, so that attention is not flat."""
    from framepack_pack.framepack_core.model.config import FramePackConfig
    from framepack_pack.framepack_core.model.transformer import FramePackTransformer
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in FramePackTransformer(FramePackConfig()).state_dict().items()}
    generator = torch.Generator("cuda").manual_seed(0)
    state_dict = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator, device="cuda")
        if "norm" in key and len(shape) == 1 and "linear" not in key:
            centre = 1.5 if shape[0] == 128 else 1.0
            values = (0.0 if key.endswith("bias") else centre) + 0.1 * values
        else:
            fan_in = shape[1:].numel() if len(shape) > 1 else shape[0]
            values *= 1.0 / fan_in**0.5 if len(shape) > 1 else 0.02
        state_dict[key] = values.to(torch.bfloat16).cpu()
    save_file(state_dict, file)


def run_ours(weights: Path, arguments: argparse.Namespace) -> tuple[list[dict], list[dict], list[Tensor]]:
    """Sample one section through the host; give the row, and what went in and out at the compared steps."""
    import comfy.model_management
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
    from framepack_pack.framepack_core.comfy_host.section_denoiser import (
        Sampling,
        check_sampling,
        host_denoise,
        unipc_sampler,
    )
    from framepack_pack.framepack_core.generate import run_section
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.schedule import section_sigmas
    from framepack_pack.framepack_core.section_plan import plan_backward

    generator = torch.Generator().manual_seed(1)
    height, width = arguments.height // 8, arguments.width // 8
    start = torch.randn(1, 16, 1, height, width, generator=generator)
    history = new_history(
        plan_backward(4, 9), 0, 0, 0, start, image_embeds=torch.randn(1, IMAGE_TOKENS, 1152, generator=generator)
    )
    text = torch.randn(1, TEXT_TOKENS, 4096, generator=generator)
    positive = [[text, {"pooled_output": torch.randn(1, 768, generator=generator)}]]

    model = load_transformer(weights)
    kept_in: list[dict] = []
    kept_out: list[Tensor] = []
    calls: list[float] = []

    def keep(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        out = executor(*args, **kwargs)
        torch.cuda.synchronize()
        if len(calls) in arguments.compared:
            named = {"x": args[0], "timestep": args[1], "context": args[2], **kwargs}
            kept_in.append({k: v.to("cpu", copy=True) if torch.is_tensor(v) else v for k, v in named.items()})
            kept_out.append(out.to("cpu", copy=True))
        calls.append(time.perf_counter() - begun)
        return out

    model.add_wrapper_with_key("diffusion_model", "bench", keep)
    check_sampling(model, positive, None, history, 1.0)
    sampling = Sampling(unipc_sampler(), section_sigmas(history, arguments.steps), 1.0, 0.0)
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    history = run_section(history, host_denoise(model, positive, None, history, sampling, 1))
    wall = time.perf_counter() - begun
    row = {
        "what": "ours in ComfyUI",
        "dtype": str(model.model.diffusion_model.dtype),
        "forward_s": median(calls[2:]),
        "first_s": calls[0],
        "section_s": wall,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "finite": bool(torch.isfinite(history.sections[-1]).all()),
    }
    del model, keep
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    return [row], kept_in, kept_out


def run_reference(reference: str, weights: Path, inputs: list[dict], outputs: list[Tensor], steps: int) -> dict:
    """The same forwards with the same weights; relative L2 of our outputs against its."""
    model, call = load_reference(reference, weights)
    torch.cuda.reset_peak_memory_stats()
    errors = []
    for given, ours in zip(inputs, outputs, strict=True):
        theirs = call(model, {k: v.cuda() if torch.is_tensor(v) else v for k, v in given.items()}).float().cpu()
        errors.append(float((ours.float() - theirs).norm() / theirs.norm()))
    given = {k: v.cuda() if torch.is_tensor(v) else v for k, v in inputs[0].items()}
    times = []
    for _ in range(steps):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call(model, given)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    row = {
        "what": "diffusers" if reference == "diffusers" else "original",
        "forward_s": median(times[2:]),
        "first_s": times[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "relative_l2": errors,
    }
    del model
    torch.cuda.empty_cache()
    return row


def load_reference(reference: str, weights: Path) -> tuple[Any, Any]:
    """The reference with our random weights on the GPU, and how it is called."""
    from safetensors.torch import load_file

    if reference == "diffusers":
        from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
            HunyuanVideoFramepackTransformer3DModel as Reference,
        )

        call = call_diffusers
    else:
        sys.path.insert(0, reference)
        from diffusers_helper.models.hunyuan_video_packed import (
            HunyuanVideoTransformer3DModelPacked as Reference,
        )

        call = call_original
    with torch.device("meta"):
        model = Reference(has_image_proj=True, image_proj_dim=1152, has_clean_x_embedder=True)
    model.load_state_dict(load_file(weights, device="cuda"), assign=True)
    if reference != "diffusers":
        vars(model)["high_quality_fp32_output_for_inference"] = True  # as FP demo_gradio.py
    return model.eval(), call


def call_diffusers(model: Any, given: dict) -> Tensor:
    section, near, middle, far = (torch.tensor(indices, device="cuda") for indices in given["frame_indices"])
    return model(
        hidden_states=given["x"],
        timestep=given["timestep"].to(given["x"].dtype),
        encoder_hidden_states=given["context"],
        encoder_attention_mask=torch.ones(given["context"].shape[:2], dtype=torch.bool, device="cuda"),
        pooled_projections=given["y"],
        image_embeds=given["image_embeds"],
        guidance=given["guidance"],
        indices_latents=section,
        latents_clean=given["history_1x"],
        indices_latents_clean=near,
        latents_history_2x=given["history_2x"],
        indices_latents_history_2x=middle,
        latents_history_4x=given["history_4x"],
        indices_latents_history_4x=far,
        return_dict=False,
    )[0]


def call_original(model: Any, given: dict) -> Tensor:
    section, near, middle, far = (torch.tensor([indices], device="cuda") for indices in given["frame_indices"])
    return model(
        hidden_states=given["x"],
        timestep=given["timestep"].to(given["x"].dtype),
        encoder_hidden_states=given["context"],
        encoder_attention_mask=torch.ones(given["context"].shape[:2], dtype=torch.bool, device="cuda"),
        pooled_projections=given["y"],
        guidance=given["guidance"],
        image_embeddings=given["image_embeds"],
        latent_indices=section,
        clean_latents=given["history_1x"],
        clean_latent_indices=near,
        clean_latents_2x=given["history_2x"],
        clean_latent_2x_indices=middle,
        clean_latents_4x=given["history_4x"],
        clean_latent_4x_indices=far,
        return_dict=False,
    )[0]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def machine(host: Path) -> dict:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "comfyui": (host / "comfyui_version.py").read_text().split('"')[-2],
        "date": time.strftime("%Y-%m-%d"),
    }


def print_table(report: dict) -> None:
    print(json.dumps(report["machine"]))
    ours = report["rows"][0]["forward_s"]
    for row in report["rows"]:
        errors = " ".join(f"{error:.2e}" for error in row.get("relative_l2", []))
        print(
            f"{row['what']:16} {row['forward_s']:.3f} s/forward (ours = {row['forward_s'] / ours:.3f}x), "
            f"peak {row['peak_gib']:.1f} GiB, relative L2 of our outputs {errors or '-'}"
        )
    print(f"section through the sampler: {report['rows'][0]['section_s']:.1f} s including the load")


if __name__ == "__main__":
    main()
