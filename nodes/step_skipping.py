"""Step skipping: the patch of the MODEL, and the calibration of its ratios."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.section_denoiser import Sampling, check_sampling, sample_sections, unipc_sampler
from ..framepack_core.comfy_host.step_skipping import record_magnitudes, skip_steps
from ..framepack_core.schedule import section_sigmas
from ..framepack_core.skipping.magnitudes import MagnitudeTable, read_table
from ..framepack_core.skipping.methods import METHODS, choose_method
from ..framepack_core.skipping.run import RETENTION
from .sampling_parts import shift_widget, steps_widget
from .schema import History, check_choice, node_schema, widget


class FramePackStepSkipping(io.ComfyNode):
    """A patch like any other, so that every sampling node uses it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeStepSkipping",
            display_name="FramePack Step Skipping",
            description="Samples about twice as fast, at some cost in quality: on some steps the transformer's blocks "
            "do not run, and what they added last time is added again.",
            search_aliases=["MagCache", "TeaCache", "first block cache", "FBCache", "framepack cache", "speed"],
            inputs=[
                widget(io.Model, "model", tooltip="A FramePack model without another step cache."),
                widget(
                    io.Combo,
                    "method",
                    options=list(METHODS),
                    default=next(iter(METHODS)),
                    tooltip="What decides which steps are skipped. Of 25 steps, MagCache quality computes 15 (F1: 13), "
                    "balanced 12, fast 9 (F1: 10). TeaCache and first block decide while they sample.",
                ),
                widget(
                    io.Float,
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.005,
                    round=0.001,
                    advanced=True,
                    tooltip="Change that skipped steps may have, no unit: higher skips more. 0 takes the method's own, "
                    "MagCache 0.05, 0.1 or 0.24, TeaCache 0.15, first block 0.06.",
                ),
                widget(
                    io.Float,
                    "retention",
                    default=RETENTION,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    advanced=True,
                    tooltip="First part of every section's steps that is always computed, 0 to 1. Lower it for more "
                    "speed and less faithful motion; 0 with TeaCache is the original's.",
                ),
                widget(
                    io.String,
                    "ratios",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="MagCache only: ratios of FramePack Calibrate Skipping, as text. Empty takes the published "
                    "ones of FramePack or F1, whichever the film is made with.",
                ),
            ],
            outputs=[io.Model.Output("model_out", display_name="model", tooltip="The model that skips steps.")],
        )

    @classmethod
    def execute(cls, model, method, threshold, retention, ratios="") -> io.NodeOutput:
        check_choice("method", method, METHODS)
        table = read_table(ratios) if ratios.strip() else None
        return io.NodeOutput(skip_steps(model, choose_method(method, threshold, retention, table)))


class FramePackCalibrateSkipping(io.ComfyNode):
    """One section, sampled as ever, along which MagCache's ratios are measured."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeCalibrateSkipping",
            display_name="FramePack Calibrate Skipping",
            description="Makes the next section of a film without skipping and measures MagCache's ratios on it, for "
            "checkpoints or LoRAs that the published ones do not fit.",
            search_aliases=["MagCache calibration", "magnitude ratios"],
            inputs=[
                widget(io.Model, "model", tooltip="The model to measure, without step skipping."),
                widget(io.Conditioning, "positive", tooltip="Any usual prompt; one is enough."),
                widget(History, "history", tooltip="A film of usual size; its next section is made."),
                steps_widget(),
                shift_widget(),
            ],
            outputs=[
                io.String.Output("ratios", display_name="ratios", tooltip="Text for FramePack Step Skipping."),
                History.Output("history_out", display_name="history", tooltip="With the section that was made."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, history, steps, shift) -> io.NodeOutput:
        check_sampling(model, positive, None, history, cfg=1.0)
        tables: list[MagnitudeTable] = []
        model = record_magnitudes(model, tables)
        sampling = Sampling(unipc_sampler(), section_sigmas(history, steps, shift), cfg=1.0, guidance_rescale=0.0)
        history = sample_sections(model, positive, None, history, sampling, sections=1)
        return io.NodeOutput(tables[0].text(), history)
