"""Our MODEL in ComfyUI, through its loader, guider and sampler, timed where the sampler calls the model."""

import inspect
import time
import warnings
from typing import Any
from unittest import mock

import torch
from framepack_pack.framepack_core.model.config import FramePackConfig
from host_attach import attach_host
from torch import Tensor

from .meters import GIB, CardWatch, Stopwatch, all_but, host_memory, uncovered, used_on_card
from .rows import MissingPieceError, Row
from .setting import COMPARED_STEPS, STEPS, module_inputs, new_film, on_device, prompt, weights_file

PIECE = 4096  # tokens, of about 19,000 at 640x640


def start_dynamic_vram() -> None:
    """As main.py of ComfyUI 0.33 does, if its flags ask for it."""
    import comfy.cli_args

    enables = getattr(comfy.cli_args, "enables_dynamic_vram", None)
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
    attach_host(options.host, device.type == "cpu", options.host_flags)
    start_dynamic_vram()
    from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer

    file = weights_file(options.scratch, options.config, device)
    with all_but(row.budget_gib) as taken:
        begun = time.perf_counter()
        try:
            model = load_transformer(file, row.weight_dtype)
            loaded = {"load_s": time.perf_counter() - begun, "rss_loaded_gib": host_memory()["rss_peak_gib"]}
            model = model if row.patch is None else row.patch(model)
        except ValueError as error:
            raise MissingPieceError(str(error)) from error
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
        # the call of the MODEL, in which tables are made, too; the transformer's own call, where it is compared
        self.model.add_wrapper_with_key("apply_model", "bench", self._timed)
        self.model.add_wrapper_with_key("diffusion_model", "bench", self._compared)

    def _timed(self, executor: Any, *args: Any, **conds: Any) -> Tensor:
        return self.watch.time(lambda: executor(*args, **conds))

    def _compared(self, executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **conds: Any) -> Any:
        if len(self.watch.marks) == 1:  # once, when everything is loaded; a step of the warm-up takes longer by it
            for inputs in self.compared:
                parts = parts_of_forward(self.model, on_device(inputs, x.device, x.dtype))
                out = executor(parts.pop("x"), timestep, context, *args, **{**conds, **parts})
                self.outputs.append(out.float().cpu())
        return executor(x, timestep, context, *args, **conds)

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


def parts_of_forward(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """x, step and section of a call of the transformer with these inputs, made without tables."""
    from framepack_pack.framepack_core.comfy_host.shelf import holder

    transformer, x = model.model.diffusion_model, given["x"]
    history = tuple(given[f"history_{rate}x"] for rate in (1, 2, 4))
    prompt = given["guidance"], given["y"], given["context"], given["image_embeds"]
    (step,) = transformer.step_inputs([given["timestep"]], *prompt, hold=holder(model, x.device))
    return {"x": x, "step": step, "section": transformer.section_inputs(x, given["frame_indices"], history)}


def measure_forward(bench: Bench, row: Row) -> tuple[dict, list[Tensor]]:
    """Median of the steps after the warm-up, in one run of the sampler."""
    history, options = bench.film(), bench.options
    if row.compares:
        bench.compared = [module_inputs(bench.config, history, step) for step in COMPARED_STEPS]
    bench.sample(history, options.warm_up + options.timed, prompt(bench.config))
    times = bench.watch.milliseconds()
    return {"first_ms": times[0], "steps_ms": times[-options.timed :]}, bench.outputs


def measure_section(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """Wall time of a film's second section of 25 steps, tables known, by the run's own report; steps of both."""
    from framepack_pack.framepack_core.comfy_host.run_record import RunRecord
    from framepack_pack.framepack_core.comfy_host.section_denoiser import Sampling, sample_sections, unipc_sampler
    from framepack_pack.framepack_core.schedule import section_sigmas

    history, positive = bench.film(), prompt(bench.config)
    record, sampling = RunRecord(history), Sampling(unipc_sampler(), section_sigmas(history, STEPS), 1.0, 0.0)
    sample_sections(record.watch(bench.model), positive, None, history, sampling, 2)
    section = record.report(bench.model, positive, sampling).sections[-1]
    figures = {"section_s": section.seconds, "computed": section.computed, "report": str(section)}
    return {"steps_ms": bench.watch.milliseconds(), **figures}, []


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


def measure_switches(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """A section of few steps, twice, without step tables, with MLPs in smaller pieces; where a step waits for the card.

    The first section is left out of the comparison: while weights arrive, products may be computed by other kernels.
    """
    from framepack_pack.framepack_core.comfy_host.shelf import shelved_bytes
    from framepack_pack.framepack_core.model.step_table import StepTable
    from framepack_pack.framepack_core.model.transformer import FramePackTransformer

    def section() -> Tensor:
        made = bench.sample(bench.film(), bench.options.warm_up, prompt(bench.config)).sections[-1]
        assert made is not None
        return made

    def forgetting(_table: Any, _prompt: Any, timestep: float, _schedule: Any, make: Any) -> Any:
        return make([timestep])[0]

    velocity = FramePackTransformer.velocity

    def in_pieces(self: Any, x: Any, step: Any, section: Any, options: Any, _piece: Any) -> Tensor:
        return velocity(self, x, step, section, options, PIECE)

    figures = {"shelved_gib": shelved_bytes(bench.model.model) / GIB}
    first, usual, again = section(), section(), section()
    figures["first_relative_l2"] = float((first - usual).norm() / usual.norm())
    figures["again_relative_l2"] = float((again - usual).norm() / usual.norm())
    for name, owner, attribute, other in (
        ("no_tables", StepTable, "look_up", forgetting),
        ("pieces", FramePackTransformer, "velocity", in_pieces),
    ):
        with mock.patch.object(owner, attribute, other):
            figures[f"{name}_relative_l2"] = float((section() - usual).norm() / usual.norm())
    return {"steps_ms": bench.watch.milliseconds(), **figures, "waits": waits(bench)}, []


def waits(bench: Bench) -> list[str]:
    """Where torch says that a call of the MODEL after the first waited for the card."""
    calls = []

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        torch.cuda.set_sync_debug_mode("warn" if len(calls) > 1 else "default")
        try:
            return executor(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    if bench.device.type != "cuda":
        return []
    bench.model.add_wrapper_with_key("apply_model", "waits", watch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.sample(bench.film(), bench.options.warm_up, prompt(bench.config))
    found = [w for w in caught if "called a synchronizing" in str(w.message)]  # not that the mode is a prototype
    return sorted({f"{w.filename}:{w.lineno} {w.message}" for w in found})


def measure_profile(bench: Bench, _: Row) -> tuple[dict, list[Tensor]]:
    """Milliseconds of a forward in each kernel, the longest first, and in none, by torch's profiler.

    From the second forward on: the first makes the step tables. Copies from the host count as none, since what is
    computed may wait for them.
    """
    from torch.profiler import DeviceType, ProfilerActivity, profile

    bench.sample(bench.film(), bench.options.warm_up, prompt(bench.config))
    on_card, forwards = bench.device.type == "cuda", bench.options.timed
    trace = profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU])
    second = len(bench.watch.marks) + 1

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        if len(bench.watch.marks) == second:
            bench.watch.milliseconds()  # waits for what came before
            trace.start()
        return executor(*args, **kwargs)

    bench.model.add_wrapper_with_key("apply_model", "profile", watch)
    bench.sample(bench.film(), 1 + forwards, prompt(bench.config))
    steps = bench.watch.milliseconds()[second:]
    trace.stop()
    spent = sorted(trace.key_averages(), key=lambda event: -event.self_device_time_total)
    kernels = {e.key[:120]: [e.self_device_time_total / 1000 / forwards, e.count / forwards] for e in spent[:40]}
    computing = [
        (e.time_range.start, e.time_range.end)
        for e in trace.events() or ()
        if e.device_type == DeviceType.CUDA and not e.name.startswith("Memcpy HtoD")
    ]
    return {"steps_ms": steps, "kernels": kernels, "idle_ms": uncovered(computing) / 1000 / forwards}, []


MEASURES = {
    "profile": measure_profile,
    "forward": measure_forward,
    "section": measure_section,
    "films": measure_films,
    "prompt": measure_prompt,
    "switches": measure_switches,
}
