"""Measures what a checkpoint of the demo world can do: `python3 scripts/evaluate.py --host ComfyUI`.

Makes films through a real ComfyUI MODEL, judges them, and writes evaluation.json, README.md and contact sheets into
--out, after every row. Rows that are there already are not made again, unless --again. Needs an interpreter with
ComfyUI's requirements; all rows take minutes on a large GPU. On a CPU: `--films 4 --only backward`. All films of a row
are one batch, so seconds per film are those of that batch, and a step cache decides for all of its films at once.
"""

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from host_attach import ROOT, attach_host
from torch import Tensor

SHEET_FOLDER = "sheets"


def main() -> int:
    """Reads the command line and returns the exit code: 1 when a row failed."""
    arguments = parse_arguments()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    attach_host(arguments.host, cpu=device == "cpu")
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    with torch.inference_mode():
        return evaluate(arguments, device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "demo_checkpoint", help="folder of the five files")
    parser.add_argument("--films", type=int, default=64, help="at most, for every row (default 64)")
    parser.add_argument("--sections", type=int, default=4, help="of a film, where a row does not fix it (default 4)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="rows, by name; --list names them")
    parser.add_argument("--again", action="store_true", help="make rows again that are there already")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evaluation", help="folder for the results")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=1, help="of the films and of their noise")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    return arguments


def evaluate(arguments: argparse.Namespace, device: str) -> int:
    from framepack_pack.tools.evaluation.films import Tools
    from framepack_pack.tools.evaluation.results import is_done, read_report, write_report
    from framepack_pack.tools.evaluation.table import markdown
    from framepack_pack.tools.evaluation.variants import VARIANTS, NotHereError

    names = [variant.name for variant in VARIANTS]
    if arguments.list:
        print("\n".join(names))
        return 0
    unknown = sorted(set(arguments.only or ()) - set(names))
    if unknown:
        sys.exit(f"There is no row {', '.join(unknown)}; --list names them.")
    file = arguments.out / "evaluation.json"
    try:
        report = read_report(file, made_with(arguments, device))
        tools = Tools(arguments.checkpoint)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    (arguments.out / SHEET_FOLDER).mkdir(parents=True, exist_ok=True)
    failed = 0
    for variant in VARIANTS:
        wanted = not arguments.only or variant.name in arguments.only
        if not wanted or (is_done(report["rows"].get(variant.name)) and not arguments.again):
            continue
        begun = time.perf_counter()
        try:
            row = measured_row(tools, variant, arguments, device)
        except NotHereError as reason:
            row = {"not_here": str(reason)}
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            failed, row = 1, {"failed": f"{type(error).__name__}: {error}"}
        report["rows"] = {name: row if name == variant.name else report["rows"].get(name) for name in names}
        report["rows"] = {name: known for name, known in report["rows"].items() if known is not None}
        write_report(file, report)
        (arguments.out / "README.md").write_text(markdown(report), encoding="utf-8")
        print(f"{variant.name}: {summary(row)} ({time.perf_counter() - begun:.1f} s)", flush=True)
    return failed


def measured_row(tools: Any, variant: Any, arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """Figures of one variant, and its contact sheet."""
    from framepack_pack.tools.evaluation.films import draw_films
    from framepack_pack.tools.evaluation.measures import measure
    from framepack_pack.tools.evaluation.sheets import save_sheet

    sections = variant.sections or arguments.sections
    scenes, prompts = draw_films(min(arguments.films, variant.films), sections, arguments.seed)
    row: dict[str, Any] = {"films": len(scenes), "sections": sections}
    if variant.frames is not None:
        frames = variant.frames(tools, scenes)
    else:
        frames, cost = sampled_films(tools, variant, scenes, prompts, arguments.seed)
        row |= cost
    row |= measure(scenes, frames, variant.order.has_start, device)
    sheet = arguments.out / SHEET_FOLDER / f"{file_name(variant.name)}.jpg"
    save_sheet(sheet, scenes, prompts, frames, variant.order.has_start)
    return row


def sampled_films(
    tools: Any, variant: Any, scenes: Any, prompts: list[list[str]], seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Frames of the transformer's films, and what they cost."""
    from framepack_pack.framepack_core.history import film_latents
    from framepack_pack.tools.evaluation.calibration import patch_of
    from framepack_pack.tools.evaluation.films import decode_films, sample_films
    from framepack_pack.tools.evaluation.measures import start_psnr

    order = variant.order._replace(seed=seed)
    sampled = sample_films(tools, scenes, variant.prompts(prompts), order, patch_of(variant, order, tools))
    history = variant.finish(sampled.history)
    begun = time.perf_counter()
    frames = decode_films(tools, history)
    decoding = time.perf_counter() - begun
    round_trip = sampled.start_round_trip
    return frames, {
        "steps": order.steps,
        "model_calls": sampled.model_calls,
        "sampling_s_per_film": sampled.seconds / len(scenes),
        "decoding_s_per_film": decoding / len(scenes),
        "vae_psnr": None if round_trip is None else float(start_psnr(scenes, round_trip).mean()),
        "latents_sha256": hashlib.sha256(film_latents(history).contiguous().numpy().tobytes()).hexdigest(),
    }


def made_with(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """What all rows of a table must share: weights, films, machine and host."""
    digest = hashlib.sha256()
    for weights in sorted(arguments.checkpoint.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return {
        "checkpoint": digest.hexdigest()[:12],
        "films": arguments.films,
        "sections": arguments.sections,
        "seed": arguments.seed,
        "machine": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "comfyui": (arguments.host / "comfyui_version.py").read_text().split('"')[-2],
    }


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name.lower())


def summary(row: dict[str, Any]) -> str:
    if "obeyed" not in row:
        return row.get("not_here") or f"FAILED, {row['failed']}"
    return f"obeyed {row['obeyed']:.1%}, colour {row['colour']:.1%}, shape {row['shape']:.1%}"


if __name__ == "__main__":
    sys.exit(main())
