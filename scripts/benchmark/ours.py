"""Our MODEL in ComfyUI, through its loader, guider and sampler, timed where the transformer is called."""

import inspect
import sys
import time
from pathlib import Path
from typing import Any

import torch
from framepack_pack.framepack_core.model.config import FramePackConfig
from torch import Tensor

from .meters import GIB, CardWatch, Stopwatch, host_memory, take_all_but, used_on_card
from .rows import MissingPieceError, Row
from .setting import COMPARED_STEPS, STEPS, module_inputs, new_film, on_device, prompt, weights_file


def attach_host(host: Path, flags: list[str]) -> None:
    """Make ComfyUI importable with these command line flags, its dynamic VRAM on as its main.py turns it on."""
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, [sys.argv[0], *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = arguments
    enables = getattr(comfy.cli_args, "enables_dynamic_vram", None)  # ComfyUI 0.33
    if enables is None or not enables() or not torch.cuda.is_available():
        return
    import comfy_aimdo.control

    reserve = comfy.cli_args.args.reserve_vram
    settings = {"simple_vram_headroom": None if reserve is None else int(reserve * GIB), "nvml_pressure": True}
    known = inspect.signature(comfy_aimdo.control.init).parameters  # fewer up to comfy-aimdo 0.4.10
    comfy_aimdo.control.init(**{name: value for name, value in settings.items() if name in known})
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    try:
        started = comfy_aimdo.control.init_devices((index, 0) for index in devices)
    except TypeError:  # comfy-aimdo 0.4.9
        started = comfy_aimdo.control.init_devices(iter(devices))
    if not started:
        raise MissingPieceError("comfy-aimdo does not start here; pass --host-flags=--disable-dynamic-vram")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def run_ours(row: Row, options: Any, config: FramePackConfig, device: torch.device) -> tuple[dict, list[Tensor]]:
    """Figures of the row, and its outputs at the compared steps (none when it is not compared)."""
    if row.budget_gib is not None and device.type != "cuda":
        raise MissingPieceError("VRAM budgets need CUDA")
    attach_host(options.host, [*(["--cpu"] if device.type == "cpu" else []), *options.host_flags])
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer

    file = weights_file(options.scratch, options.config, device)
    taken = 0 if row.budget_gib is None else take_all_but(row.budget_gib)
    begun = time.perf_counter()
    try:
        model = load_transformer(file, row.weight_dtype)
    except ValueError as error:
        raise MissingPieceError(str(error)) from error
    loaded = {"load_s": time.perf_counter() - begun, "rss_loaded_gib": host_memory()["rss_peak_gib"]}
    model = model if row.patch is None else row.patch(model)
    bench = Bench(model, options, config, device)
    with CardWatch(device, taken) as card:
        figures, outputs = MEASURES[row.measure](bench, row)
    patcher = {"patcher": type(model).__name__, "dtype": str(model.model.diffusion_model.dtype)}
    return {**patcher, **loaded, **figures, **card.figures(), **host_memory()}, outputs


class Bench:
    """One MODEL on which sections are sampled."""

    def __init__(self, model: Any, options: Any, config: FramePackConfig, device: torch.device) -> None:
        self.model, self.options, self.config, self.device = model.clone(), options, config, device
        self.watch = Stopwatch(device)
        self.compared: list[dict[str, Any]] = []
        self.outputs: list[Tensor] = []
        self.model.add_wrapper_with_key("diffusion_model", "bench", self._timed)

    def _timed(self, executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **conds: Any) -> Tensor:
        if len(self.watch.marks) == 1 and not self.outputs:
            for inputs in self.compared:  # once, when everything is loaded; not among the timed calls
                given = on_device(inputs, x.device, x.dtype)
                named = {**conds, **{name: given[name] for name in conds if name in given}}
                out = executor(given["x"], given["timestep"].float(), given["context"], *args, **named)
                self.outputs.append(out.float().cpu())
        return self.watch.time(lambda: executor(x, timestep, context, *args, **conds))

    def sample(self, history: Any, steps: int, positive: list) -> Any:
        """The history with its next section, from the first `steps` of 25 steps' noise levels."""
        from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, host_denoise, unipc_sampler
        from framepack_pack.framepack_core.generate import run_section
        from framepack_pack.framepack_core.schedule import section_sigmas

        sigmas = torch.cat([section_sigmas(history, STEPS)[:steps], torch.zeros(1)])
        sampling = Sampling(unipc_sampler(), sigmas, 1.0, 0.0)
        return run_section(history, host_denoise(self.model, positive, None, history, sampling, 1))

    def film(self, sections: int = 4) -> Any:
        return new_film(self.config, self.options.width, self.options.height, sections)


def measure_forward(bench: Bench, row: Row) -> tuple[dict, list[Tensor]]:
    """Median of the steps after the warm-up, in one run of the sampler."""
    history, options = bench.film(), bench.options
    if row.compares:
        bench.compared = [module_inputs(bench.config, history, step) for step in COMPARED_STEPS]
    bench.sample(history, options.warm_up + options.timed, prompt(bench.config))
    times = bench.watch.milliseconds()
    return {"first_ms": times[0], "steps_ms": times[-options.timed :]}, bench.outputs


def measure_section(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """Wall time of a section of 25 steps, after one that warms up."""
    history = bench.sample(bench.film(), STEPS, prompt(bench.config))
    done = len(bench.watch.marks)
    begun = time.perf_counter()
    bench.sample(history, STEPS, prompt(bench.config))
    section = time.perf_counter() - begun
    return {"steps_ms": bench.watch.milliseconds()[done:], "section_s": section}, []


def measure_films(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """Memory and step time, section by section."""
    history, series = bench.film(12), []
    for _section in range(12):
        done = len(bench.watch.marks)
        history = bench.sample(history, 2, prompt(bench.config))
        now = {
            "step_ms": min(bench.watch.milliseconds()[done:]),
            "rss_gib": host_memory().get("rss_anonymous_gib", 0.0),
        }
        if bench.device.type == "cuda":
            now["card_gib"] = used_on_card() / GIB
        series.append(now)
    drift = {f"drift_{name}": _drift([now[name] for now in series]) for name in series[0]}
    return {"steps_ms": [now["step_ms"] for now in series[2:]], "series": series, **drift}, []


def _drift(values: list[float]) -> float:
    """Change from sections 3 and 4 to the last two, as a fraction."""
    early, late = sum(values[2:4]) / 2, sum(values[-2:]) / 2
    return (late - early) / early if early else 0.0


def measure_prompt(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """How much longer the first step of a new prompt takes than the others, with everything loaded."""
    steps = bench.options.warm_up + bench.options.timed
    history = bench.sample(bench.film(), steps, prompt(bench.config))
    done = len(bench.watch.marks)
    bench.sample(history, steps, prompt(bench.config, seed=9))
    times = bench.watch.milliseconds()[done:]
    usual = sorted(times)[len(times) // 2]
    return {"steps_ms": times, "new_prompt_ms": times[0] - usual}, []


MEASURES = {
    "forward": measure_forward,
    "section": measure_section,
    "films": measure_films,
    "prompt": measure_prompt,
}
