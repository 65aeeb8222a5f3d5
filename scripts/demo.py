"""Makes a film with this pack on a ComfyUI that it sets up itself: `python3 scripts/demo.py`.

No model has to be downloaded: the film comes from the small trained set in `demo_checkpoint`, through the workflows
`example_workflows/api/demo_*.json`, in a minute, also on a CPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import workflow
from scripts.host_setup import ROOT, SetupError, prepare, run_to_end

WORKFLOWS = {"backward": "demo_image_to_video", "forward": "demo_forward", "text": "demo_text_to_video"}
BASE = ROOT / ".host" / "demo"
BAR_WIDTH = 30


def main() -> int:
    """Reads the command line, sets up, and hands over to itself inside the host's interpreter."""
    arguments = _arguments()
    try:
        if arguments.ready is None:
            host = prepare(arguments.host)
            command = [str(host.python), __file__, *sys.argv[1:], "--ready", str(host.comfyui)]
            return run_to_end(command, host.environment())
        signal.signal(signal.SIGTERM, _stop)
        return _film(arguments)
    except (SetupError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
    return 1


def _stop(*_: object) -> None:
    """SIGTERM ends as Ctrl-C does, with the server stopped; another one does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="start image (default: docs/start.png)")
    parser.add_argument("--prompt", help="one prompt for the film (default: one for each of three sections)")
    parser.add_argument("--prompts", type=Path, help="text file with section prompts, such as [0s-2s: ...]")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the film (default 4, three sections)")
    parser.add_argument("--steps", type=int, default=12, help="steps of each section (default 12)")
    parser.add_argument("--mode", choices=WORKFLOWS, default="backward", help="order of sections, or no start image")
    parser.add_argument("--out", type=Path, default=Path("framepack_demo.mp4"), help="file to write; never overwritten")
    parser.add_argument("--host", type=Path, help="folder of the ComfyUI to use (default: the pinned one)")
    parser.add_argument("--ready", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for file in (arguments.image, arguments.prompts):
        if file and not file.is_file():
            parser.exit(1, f"{file} does not exist.\n")
    if arguments.image and arguments.mode == "text":
        parser.exit(1, "--image has no place in a film of --mode text; leave one of them out.\n")
    if arguments.seconds <= 0:
        parser.exit(1, "--seconds must be above 0.\n")
    if arguments.steps < 1:
        parser.exit(1, "--steps must be at least 1.\n")
    return arguments


def _film(arguments: argparse.Namespace) -> int:
    """Runs inside the host's interpreter."""
    import av
    import torch

    from scripts.client import NodeError, ServerError
    from scripts.server import ComfyServer

    # Apple's GPU needs no flag either; without any GPU the server stops at its start unless it is told.
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    begun = time.monotonic()
    try:
        _say(f"Starting ComfyUI {'on the CPU' if cpu else 'on the GPU'}")
        with ComfyServer(Path(sys.executable), arguments.ready, ROOT, base=BASE, cpu=cpu) as server:
            prompt = _prompt(arguments, server.upload_image(arguments.image) if arguments.image else None)
            prompt_id = server.queue(prompt)
            sampling = time.monotonic()
            _show_progress(server.events(prompt_id), prompt)
            taken = time.monotonic() - sampling
            films = [file for file in server.output_files(prompt_id) if file.filename.endswith(".mp4")]
            content = server.view(films[0])
    except NodeError as error:
        sys.stderr.write(f"The film was not made: {error.message} ({error.node_type})\n")
        return 1
    except ServerError as error:
        sys.stderr.write(f"The film was not made: {error}\n")
        return 1
    out = save_film(content, arguments.out, BASE / "output" / films[0].subfolder / films[0].filename)
    with av.open(str(out)) as container:
        frames = sum(1 for _ in container.decode(video=0))
        size = f"{container.streams.video[0].width}x{container.streams.video[0].height}"
    total = time.monotonic() - begun
    sys.stdout.write(
        f"{out}: {frames} frames of {size}, made in {taken:.1f} s ({total:.1f} s with the server's start)\n"
    )
    return 0


def _prompt(arguments: argparse.Namespace, start_image: str | None) -> workflow.Prompt:
    """The example workflow of the mode with what the command line says; start_image: an uploaded file's name."""
    prompt = workflow.read(ROOT / "example_workflows" / "api" / f"{WORKFLOWS[arguments.mode]}.json")
    text = arguments.prompts.read_text(encoding="utf-8") if arguments.prompts else arguments.prompt
    if text:
        prompt = workflow.set_inputs(prompt, "FramePackNativeSectionPrompts", prompts=text)
    prompt = workflow.set_inputs(prompt, "FramePackNativeStartHistory", total_second_length=arguments.seconds)
    prompt = workflow.set_inputs(prompt, "FramePackNativeSampler", steps=arguments.steps)
    if start_image:
        prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": start_image}}
        prompt = workflow.set_inputs(prompt, "FramePackNativeStartImage", image=["image", 0])
    return prompt


def _show_progress(events: Iterable[Any], prompt: workflow.Prompt) -> None:
    """Draws a bar with section, step and remaining time while sampling, and names the other long steps."""
    (sampler,) = workflow.node_ids(prompt, "FramePackNativeSampler")
    steps = prompt[sampler]["inputs"]["steps"]
    terminal, begun, shown = sys.stderr.isatty(), time.monotonic(), 0
    for event in events:
        if event.type == "executing" and event.data.get("node") in prompt:
            sys.stderr.write("\n" if terminal and shown else "")
            shown, begun = 0, time.monotonic()
            _say(prompt[event.data["node"]]["class_type"])
        elif event.type == "progress" and event.data.get("node") == sampler and event.data["value"] >= 1:
            value, total = int(event.data["value"]), int(event.data["max"])
            section, step = divmod(value - 1, steps)
            if not terminal and section + 1 == shown and value < total:
                continue  # in a log, one line for each section and one for the end
            shown = section + 1
            remaining = (time.monotonic() - begun) / value * (total - value)
            bar = "#" * (BAR_WIDTH * value // total)
            where = f"section {shown}/{total // steps}, step {step + 1}/{steps}"
            line = f"[{bar:<{BAR_WIDTH}}] {where}, {remaining:.0f} s left"
            sys.stderr.write(f"\r{line:<100}" if terminal else f"{line}\n")
            sys.stderr.flush()


def save_film(content: bytes, wanted: Path, kept: Path) -> Path:
    """Writes the film under a name that is free and returns it; `kept` is where the server has it.

    SetupError when the disk is full or the folder cannot be written; nothing half written stays.
    """
    out = _free_name(wanted)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(out)
    except OSError as error:
        raise SetupError(f"{out} could not be written: {error.strerror}. The film is whole in {kept}.") from error
    finally:
        if partial.exists():
            partial.unlink()
    return out


def _free_name(path: Path) -> Path:
    """The path, or with a number added to its name when that file exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def _say(text: str) -> None:
    sys.stderr.write(f"{text} ...\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
