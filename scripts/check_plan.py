"""What FramePack Plan says beside what a run then takes, for film sizes and VRAM budgets.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/check_plan.py --json plan.json
    COMFYUI_PATH=... python3 scripts/check_plan.py --tiny --sizes 64x64        # a try-out, also without a card

Needs a CUDA card with 40 GB, 60 GB of RAM, 26 GB in --scratch for random weights of the released size (those of
bench.py), and an interpreter with ComfyUI's requirements. For a budget all but so many GiB of the card is taken away.
The first row is guessed from the card's name; its report then gives the time of the others, as it would for a user.
ComfyUI's memory management is the static one, which is what runs without its main.py. Every row is one section in a
process of its own, and RAM is what that process takes on top of a card that has been woken up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from benchmark.meters import GIB, all_but
from host_attach import attach_host

RESULT = "RESULT "
FIGURES = {  # estimate -> totals of the report, and what one unit of the table is
    "seconds_per_step": ("seconds_per_step", 1),
    "vram": ("peak_vram", GIB),
    "streamed_per_forward": ("streamed_per_forward", GIB),
    "ram": ("ram", GIB),
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.row:
        attach_host(arguments.host, cpu=not torch.cuda.is_available())
        size, budget = arguments.row
        with torch.inference_mode(), all_but(float(budget)):
            print(RESULT + json.dumps(check(size, float(budget), arguments)))
        return
    rows: list[dict[str, Any]] = []
    for budget in arguments.budgets:
        for size in arguments.sizes:
            rows.append(row_of_its_own_process(size, budget, rows))
            print_row(rows[-1])
            if arguments.json:
                arguments.json.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=2))


def row_of_its_own_process(size: str, budget: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row that this script, called once more, prints; it knows the first row's report."""
    report = json.dumps(rows[0]["report"]) if rows else ""
    command = [sys.executable, *sys.argv, "--row", size, str(budget), "--report", report]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rpartition(RESULT)[2])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--sizes", nargs="*", default=["640x640", "512x512", "832x480"], help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--budgets", nargs="*", type=float, default=[0, 24, 12], help="GiB of the card; 0: all of it")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--weight-dtype", default="default", help="of Load FramePack Model")
    parser.add_argument("--tiny", action="store_true", help="small random weights, to try the script")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "framepack_bench")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument(
        "--row", nargs=2, default=None, help="size and budget of the one row to make; prints it as JSON"
    )
    parser.add_argument("--report", default="", help="with --row: JSON of the run report that gives the speed")
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    if arguments.steps < 4:
        parser.error(f"--steps is {arguments.steps}; fewer than 4 say nothing about speed")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    return arguments


def check(size: str, budget: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of one film."""
    from benchmark.setting import CONFIGS, new_film, prompt, weights_file
    from framepack_pack.framepack_core.comfy_host import plan_request
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
    from framepack_pack.framepack_core.comfy_host.run_record import RunRecord
    from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, sample_sections, unipc_sampler
    from framepack_pack.framepack_core.planning.plan_text import figures
    from framepack_pack.framepack_core.planning.resolve import resolve
    from framepack_pack.framepack_core.run_report import read_speed
    from framepack_pack.framepack_core.schedule import section_sigmas

    config, device = "tiny" if arguments.tiny else "13b", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = weights_file(arguments.scratch, config, device)
    wake_up(device)
    before = psutil.Process().memory_info().rss
    model = load_transformer(weights, arguments.weight_dtype)
    width, height = map(int, size.split("x"))
    history, positive = new_film(CONFIGS[config], width, height), prompt(CONFIGS[config])
    facts = plan_request.model_facts(model)
    settings = {"steps": arguments.steps, "speed": read_speed(arguments.report) if arguments.report else None}
    request = plan_request.read_request(history, facts, positive, settings=settings)
    estimate, messages = resolve(request, plan_request.read_machine("this machine", 0.0, model, history))
    record = RunRecord(history)
    sampling = Sampling(unipc_sampler(), section_sigmas(history, arguments.steps), 1.0, 0.0)
    sample_sections(record.watch(model), positive, None, history, sampling, 1)
    measured = record.report(model, positive, sampling)
    totals = measured.totals()
    totals["ram"] -= before
    return {
        "size": size,
        "budget_gib": budget,
        "estimate": figures(estimate),
        "messages": [message._asdict() for message in messages],
        "measured": totals,
        "report": json.loads(measured.as_json()),
    }


def wake_up(device: torch.device) -> None:
    """Load what every run loads: the driver, and libraries of matrix products and attention."""
    x = torch.ones(1, 1, 256, 64, dtype=torch.bfloat16, device=device)
    torch.nn.functional.scaled_dot_product_attention(x @ x.mT @ x, x, x).sum().item()


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
