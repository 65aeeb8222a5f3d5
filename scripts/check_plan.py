"""What FramePack Plan says beside what a run then takes, for film sizes and VRAM budgets.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/check_plan.py --json plan.json
    COMFYUI_PATH=... python3 scripts/check_plan.py --tiny --sizes 64x64        # a try-out, also without a card

Needs a CUDA card with 40 GB, 60 GB of RAM and 26 GB of disk for random weights of the released size, and an
interpreter with ComfyUI's requirements. For a budget all but so many GiB of the card is taken away. The first row is
guessed from the card's name; its report then gives the time of the others, as it would for a user. ComfyUI's memory
management is the static one, which is what runs without its main.py. Every row is one section.
"""

import argparse
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
TEXT_TOKENS, IMAGE_TOKENS = 128, 729
FIGURES = {  # estimate -> totals of the report, and what one unit of the table is
    "seconds_per_step": ("seconds_per_step", 1),
    "vram": ("peak_vram", GIB),
    "streamed_per_forward": ("streamed_per_forward", GIB),
    "ram": ("ram", GIB),
}


def main() -> None:
    arguments = parse_arguments()
    attach_host(arguments.host)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, torch.inference_mode():
        weights = Path(scratch) / "framepack_random.safetensors"
        write_weights(weights, arguments.tiny)
        rows, report = [], None
        for budget in arguments.budgets:
            for size in arguments.sizes:
                row, report = check(weights, size, budget, arguments, report)
                rows.append(row)
                print_row(row)
                if arguments.json:
                    arguments.json.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--sizes", nargs="*", default=["640x640", "512x512", "832x480"], help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--budgets", nargs="*", type=float, default=[0, 24, 12], help="GiB of the card; 0: all of it")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--weight-dtype", default="default", help="of Load FramePack Model")
    parser.add_argument("--tiny", action="store_true", help="small random weights, to try the script")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the random weights")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    return arguments


def attach_host(host: Path) -> None:
    """Make ComfyUI importable, on the CPU where there is no card, and the pack under an alias."""
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    sys.argv = arguments
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack


def write_weights(file: Path, tiny: bool) -> None:
    """Random bf16 weights; q/k norms about 1.5, so that attention is not flat."""
    from framepack_pack.framepack_core.model.config import FramePackConfig, metadata_of
    from framepack_pack.framepack_core.model.transformer import FramePackTransformer
    from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
    from safetensors.torch import save_file

    config = tiny_transformer_config() if tiny else FramePackConfig()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in FramePackTransformer(config).state_dict().items()}
    generator = torch.Generator(device).manual_seed(0)
    state_dict = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator, device=device)
        if "norm" in key and len(shape) == 1 and "linear" not in key:
            values = (0.0 if key.endswith("bias") else 1.5) + 0.1 * values
        else:
            values *= 1.0 / shape[1:].numel() ** 0.5 if len(shape) > 1 else 0.02
        state_dict[key] = values.to(torch.bfloat16).cpu()
    save_file(state_dict, file, metadata_of(config))


def check(weights: Path, size: str, budget: float, arguments: argparse.Namespace, report: str | None) -> Any:
    """(row of one film, report for the next rows)"""
    import comfy.model_management
    from framepack_pack.framepack_core.comfy_host import plan_request
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
    from framepack_pack.framepack_core.comfy_host.run_record import RunRecord
    from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, sample_sections, unipc_sampler
    from framepack_pack.framepack_core.planning.plan_text import figures
    from framepack_pack.framepack_core.planning.resolve import resolve
    from framepack_pack.framepack_core.run_report import read_speed
    from framepack_pack.framepack_core.schedule import section_sigmas

    before = psutil.Process().memory_info().rss
    model = load_transformer(weights, arguments.weight_dtype)
    history, positive = film(model.model.diffusion_model.config, *map(int, size.split("x")))
    taken = take_all_but(budget)
    facts = plan_request.model_facts(model)
    settings = {"steps": arguments.steps, "speed": read_speed(report) if report else None}
    request = plan_request.read_request(history, facts, positive, settings=settings)
    estimate, messages = resolve(request, plan_request.read_machine("this machine", 0.0, model, history))
    record = RunRecord(history)
    sampling = Sampling(unipc_sampler(), section_sigmas(history, arguments.steps), 1.0, 0.0)
    sample_sections(record.watch(model), positive, None, history, sampling, 1)
    measured = record.report(model, positive, sampling)
    held = 0 if taken is None else taken.nbytes
    totals = measured.totals()
    totals |= {"peak_vram": (totals["peak_vram"] or held) - held, "ram": totals["ram"] - before}
    del taken, record
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    row = {
        "size": size,
        "budget_gib": budget,
        "estimate": figures(estimate),
        "messages": [message._asdict() for message in messages],
        "measured": totals,
        "report": json.loads(measured.as_json()),
    }
    return row, report or measured.as_json()


def film(config: Any, width: int, height: int) -> Any:
    """(empty history of four sections, CONDITIONING) of random features."""
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.section_plan import plan_backward

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, 16, 1, height // 8, width // 8, generator=generator)
    embeds = torch.randn(1, IMAGE_TOKENS, config.image_proj_dim, generator=generator)
    text = torch.randn(1, TEXT_TOKENS, config.text_embed_dim, generator=generator)
    pooled = torch.randn(1, config.pooled_projection_dim, generator=generator)
    history = new_history(plan_backward(4, 9), 0, width, height, start, image_embeds=embeds)
    return history, [[text, {"pooled_output": pooled}]]


def take_all_but(budget: float) -> torch.Tensor | None:
    """A tensor that leaves so many GiB of the card free; None where there is nothing to take."""
    if not budget or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free - round(budget * GIB), 0), dtype=torch.uint8, device="cuda")


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['size']}, {row['budget_gib'] or 'all'} GiB ({row['estimate']['seconds_per_step_from']})")
    for name, (of_report, unit) in FIGURES.items():
        said, got = row["estimate"][name], row["measured"][of_report]
        if said is None or got is None:
            continue
        off = f"{100 * (said / got - 1):+.0f} %" if got else ""
        print(f"    {name:22} said {said / unit:9.3f}   measured {got / unit:9.3f}   {off}")


if __name__ == "__main__":
    main()
