"""How much the sampler's early look slows sampling: films with and without it, in turns, at full size.

    COMFYUI_PATH=/path/to/ComfyUI python3 scripts/bench_early_look.py --json early_look.json
    COMFYUI_PATH=... python3 scripts/bench_early_look.py --looks off taehv:file vae:file --steps 25 --sections 3
    COMFYUI_PATH=... python3 scripts/bench_early_look.py --tiny --size 64 --steps 2      (to try it without a card)

Random weights: the released transformer (26 GB in bf16, bench.py's, or --tiny), the full VAE, TAEHV. A look is off, or
taehv or vae with preview or file. One warm-up section of two steps for each look, then --rounds times all of them one
after the other. Prints one JSON line for each run, then for each look the medians: seconds of the run, share by which
that is slower than off of the same round, seconds that sampling stood still, and what is left: the share that encoding
behind it costs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_decode import write_weights
from host_attach import attach_host

LOOKS = ["off", "taehv:preview", "taehv:file", "vae:preview", "vae:file"]
WARM_UP_STEPS = 2


def main() -> None:
    arguments = parse_arguments()
    attach_host(arguments.host, arguments.tiny)
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        bench = Bench(arguments, Path(scratch))
        for look in arguments.looks:
            bench.run(look, 1, WARM_UP_STEPS)
        rows = []
        for number in range(arguments.rounds):
            for look in arguments.looks:
                rows.append({"round": number, "look": look, **bench.run(look, arguments.sections, arguments.steps)})
                print(json.dumps(rows[-1]), flush=True)
    report = {"command": " ".join(sys.argv), "machine": machine(arguments.host), "rows": rows, "looks": summary(rows)}
    print(json.dumps({"machine": report["machine"], "looks": report["looks"]}, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--looks", nargs="*", default=LOOKS, help="off must be the first")
    parser.add_argument("--size", type=int, default=640, help="pixels a side")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sections", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--direction", choices=["backward", "forward"], default="backward")
    parser.add_argument("--tiny", action="store_true", help="tiny transformer and VAE, on the CPU")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "framepack_bench")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.host is None:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    if arguments.looks[:1] != ["off"]:
        parser.error("the first look must be off: the others are compared with it")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    return arguments


class Bench:
    """The models, and a film that is sampled with them."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        from benchmark.setting import CONFIGS, new_film, prompt, weights_file
        from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_vae
        from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
        from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward

        name, device = ("tiny", "cpu") if arguments.tiny else ("13b", "cuda")
        write_weights(scratch / "vae.safetensors", 32 if arguments.tiny else 128)
        self.model = load_transformer(weights_file(arguments.scratch, name, torch.device(device)))
        self.vaes = {"vae": load_vae(scratch / "vae.safetensors"), "taehv": random_taehv()}
        self.scratch, self.films = scratch, 0
        plan = {"backward": plan_backward, "forward": plan_forward}[arguments.direction]
        self.history = new_film(CONFIGS[name], arguments.size, arguments.size, max(arguments.sections, 4), plan)
        self.positive = prompt(CONFIGS[name])

    def run(self, look: str, sections: int, steps: int) -> dict[str, Any]:
        from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, sample_sections, unipc_sampler
        from framepack_pack.framepack_core.schedule import section_sigmas

        early = self.early_look(look)
        sampling = Sampling(unipc_sampler(), section_sigmas(self.history, steps), 1.0, 0.0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        sample_sections(self.model, self.positive, None, self.history, sampling, sections, early)
        row = {"seconds": time.perf_counter() - begun, "sections": sections}
        if early:
            if early.over:
                raise SystemExit(f"The early look {look} failed; its message stands above.")
            row |= {"stood_still_s": early.seconds, "ending_s": early.ending}
            row |= {"file_mb": sum(p.stat().st_size for p in early.paths) / 1e6}
        if torch.cuda.is_available():
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return row

    def early_look(self, look: str) -> Any:
        from framepack_pack.framepack_core.comfy_host.early_look import FILE, EarlyLook
        from framepack_pack.framepack_core.comfy_host.growing_video import GrowingVideo

        if look == "off":
            return None
        vae, kind = look.split(":")
        self.films += 1
        videos = [GrowingVideo(self.scratch / f"film{self.films}.mp4")] if kind == FILE else []
        return EarlyLook(self.vaes[vae], videos)


def random_taehv() -> Any:
    """The host's TAEHV; it is told from Wan's by its fp16."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    generator = torch.Generator().manual_seed(0)
    shapes = {key: value.shape for key, value in TAEHV(16).state_dict().items()}
    weights = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        weights[key] = (values / shape[1:].numel() ** 0.5 if len(shape) > 1 else 0.02 * values).half()
    return comfy.sd.VAE(sd=weights)


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    off = {row["round"]: row["seconds"] for row in rows if row["look"] == "off"}
    looks: dict[str, dict[str, float]] = {}
    for look in {row["look"]: None for row in rows if row["look"] != "off"}:
        mine = [row for row in rows if row["look"] == look]
        slower = statistics.median((row["seconds"] - row["ending_s"]) / off[row["round"]] - 1 for row in mine)
        still = statistics.median(row["stood_still_s"] / off[row["round"]] for row in mine)
        looks[look] = {
            "seconds": statistics.median(row["seconds"] for row in mine),
            "ending_s": statistics.median(row["ending_s"] for row in mine),
            "slower_percent": 100 * slower,
            "stood_still_percent": 100 * still,
            "behind_percent": 100 * (slower - still),
        }
    return looks


def machine(host: Path) -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "comfyui": (host / "comfyui_version.py").read_text().split('"')[-2],
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
