"""Rows side by side: the original, diffusers and ours, one process each, in ABBA order.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/bench.py --original /path/to/FramePack --json bench.json
    ... --rows original,diffusers,ours,ours-fp8 --quick
    ... --config tiny --rows diffusers,ours                  on a CPU, to see that it works

Random weights of the released size, the same in every process, and the inputs of one section: 640x640, 9 noisy, 2 + 2
+ 16 history latents, 100 text and 729 image tokens. Ours runs as a MODEL through ComfyUI's guider and sampler. Errors
are relative L2 against diffusers in float32. Needs a CUDA card with 80 GB or more for that reference (--no-reference
without), 26 GB in --scratch, and an interpreter that has ComfyUI's requirements and diffusers. What is in the JSON
file already is not run again, unless it failed; --minutes stops in time, and the same command goes on.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark.rows import ROWS

DEFAULT = "original,diffusers,diffusers-compiled,ours,ours-fp8"


def main() -> None:
    options = parse_arguments()
    report: dict = json.loads(options.json.read_text()) if options.json.exists() else {"runs": []}
    report["runs"] = [run for run in report["runs"] if "steps_ms" in run]  # what failed or was skipped is tried again
    done = {(run["row"], run["pass"]) for run in report["runs"]}
    begun = time.monotonic()
    for name, number in plan(options):
        if (name, number) in done:
            continue
        if time.monotonic() - begun > 60 * options.minutes:
            print(f"{options.minutes} minutes are over; the same command goes on with {name}.", flush=True)
            break
        run = {"row": name, "pass": number, **run_row(name, options)}
        report["runs"].append(run)
        report["command"] = " ".join(sys.argv)
        options.json.write_text(json.dumps(report, indent=1))
        print(f"{name} ({number}): {sentence(run)}", flush=True)
    print("\n" + table(report["runs"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--host-flags", default="", help='flags of ComfyUI, as --host-flags="--reserve-vram 2"')
    parser.add_argument("--original", type=Path, default=None, help="checkout of lllyasviel/FramePack")
    parser.add_argument("--rows", default=DEFAULT, help=f"some of {','.join(ROWS)}, or all")
    parser.add_argument("--order", choices=["abba", "once"], default="abba")
    parser.add_argument("--config", choices=["13b", "tiny"], default="13b")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--height", type=int, default=None)
    parser.add_argument("--warm-up", type=int, default=3, help="forwards that are not timed")
    parser.add_argument("--timed", type=int, default=10, help="forwards that are")
    parser.add_argument("--quick", action="store_true", help="each row once, 4 timed forwards")
    parser.add_argument("--no-reference", action="store_true", help="no float32 reference, no errors")
    parser.add_argument("--row-seconds", type=int, default=400, help="a row that takes longer has failed")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no row after these")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "framepack_bench")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    if options.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    if options.quick:
        options.order, options.timed = "once", 4
    side = 640 if options.config == "13b" else 64
    options.width, options.height = options.width or side, options.height or side
    options.rows = list(ROWS) if options.rows == "all" else options.rows.split(",")
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    options.host_flags = shlex.split(options.host_flags)
    options.scratch.mkdir(parents=True, exist_ok=True)
    return options


def plan(options: argparse.Namespace) -> list[tuple[str, int]]:
    """A B C, then C B A; before it the reference, when its file is not there."""
    runs = [(name, 1) for name in options.rows]
    if options.order == "abba":
        runs += [(name, 2) for name in reversed(options.rows)]
    reference = options.scratch / f"reference_{options.config}_{options.width}x{options.height}.pt"
    needs_reference = not options.no_reference and not reference.exists()
    return [("reference", int(time.time()))] * needs_reference + runs


def run_row(name: str, options: argparse.Namespace) -> dict:
    """The figures that the row's process prints; a row that fails is reported and does not end the bench."""
    given = {key: value if isinstance(value, int | list) else str(value) for key, value in vars(options).items()}
    given["original"] = options.original and str(options.original.resolve())
    command = [sys.executable, "-m", "benchmark.worker", name, json.dumps(given)]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=options.row_seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {options.row_seconds} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"failed": (done.stderr or done.stdout)[-3000:]}
    return json.loads(lines[-1].removeprefix("RESULT "))


def sentence(run: dict) -> str:
    if "skipped" in run or "failed" in run:
        return run.get("skipped") or "failed: " + run["failed"].strip().splitlines()[-1]
    return f"{median(run['steps_ms']):.1f} ms, load {run['load_s']:.1f} s, process {run['process_s']:.0f} s"


def table(runs: list[dict]) -> str:
    """One line per row: medians over the passes, and ratios to the first row that has a time."""
    lines = ["| row | ms per forward | first row / it | torch / card peak GiB | host peak GiB | error | note |"]
    lines.append("|---" * 7 + "|")
    base = None
    for name in dict.fromkeys(run["row"] for run in runs if run["row"] in ROWS):
        passes = [run for run in runs if run["row"] == name]
        good = [run for run in passes if "steps_ms" in run]
        if not good:
            lines.append(f"| {ROWS[name].what} | - | - | - | - | - | {sentence(passes[-1])} |")
            continue
        time_ms = median([median(run["steps_ms"]) for run in good])
        base = base or time_ms
        memory = " / ".join(
            f"{max(run.get(key, 0.0) for run in good):.1f}" for key in ("torch_peak_gib", "card_peak_gib")
        )
        errors = " ".join(f"{error:.2e}" for error in good[-1].get("relative_l2", [])) or "-"
        lines.append(
            f"| {ROWS[name].what} | {time_ms:.1f} | {base / time_ms:.3f} | {memory} | "
            f"{max(run['rss_peak_gib'] for run in good):.1f} | {errors} | {note(good[-1])} |"
        )
    machine = next((run["machine"] for run in runs if "machine" in run), {})
    return "\n".join([json.dumps(machine), "", *lines])


def note(run: dict) -> str:
    """What only some rows have."""
    parts = [f"load {run['load_s']:.1f} s, first {run['first_ms']:.0f} ms"] if "first_ms" in run else []
    parts += [f"section {run['section_s']:.2f} s, {run['computed']} steps computed"] if "section_s" in run else []
    parts += [f"new prompt +{run['new_prompt_ms']:.0f} ms"] if "new_prompt_ms" in run else []
    parts += [f"{key.removesuffix('_relative_l2')} {run[key]:.1e}" for key in run if key.endswith("_relative_l2")]
    parts += [f"{run['idle_ms']:.1f} ms in no kernel"] if "idle_ms" in run else []
    parts += [f"{len(run['waits'])} places that wait"] if "waits" in run else []
    parts += [f"{key.removeprefix('drift_')} {100 * run[key]:+.2f} %" for key in run if key.startswith("drift_")]
    return ", ".join(parts)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
