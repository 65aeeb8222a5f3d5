"""FramePack's sampler and schedule for core's sampling nodes."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.section_denoiser import unipc_sampler
from ..framepack_core.constants import STEPS
from ..framepack_core.schedule import section_sigmas
from .schema import History, node_schema, widget


def steps_widget():
    """Denoising steps per section."""
    return widget(
        io.Int,
        "steps",
        default=STEPS,
        min=1,
        max=1000,
        tooltip="Denoising steps per section. 25 is usual; more is slower and seldom better.",
    )


def cfg_widget(tooltip: str):
    """Guidance by a negative prompt."""
    return widget(io.Float, "cfg", default=1.0, min=0.0, max=30.0, step=0.1, round=0.01, tooltip=tooltip)


def shift_widget():
    """Flow shift."""
    return widget(
        io.Float,
        "shift",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.01,
        advanced=True,
        tooltip="Flow shift, no unit: higher spends more steps on motion and layout. 0 takes what the size asks for "
        "(7 from 512x512 up, less below).",
    )


class FramePackUniPC(io.ComfyNode):
    """Core's uni_pc is another parameterisation and gives other results."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeUniPC",
            display_name="FramePack UniPC",
            description="FramePack's flow-matching UniPC as a SAMPLER.",
            inputs=[
                widget(
                    io.Combo,
                    "solver",
                    options=["bh1", "bh2"],
                    default="bh1",
                    tooltip="Variant of the solver. bh1 is FramePack's; they differ below about 6 steps only.",
                )
            ],
            outputs=[io.Sampler.Output("sampler", display_name="sampler")],
        )

    @classmethod
    def execute(cls, solver: str) -> io.NodeOutput:
        return io.NodeOutput(unipc_sampler("bh2" if solver == "bh2" else "bh1"))


class FramePackSigmas(io.ComfyNode):
    """The schedule depends on the size of a section."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeSigmas",
            display_name="FramePack Sigmas",
            description="FramePack's noise schedule for the sections of a film.",
            inputs=[
                widget(History, "history", tooltip="The film; its section size sets the automatic shift."),
                steps_widget(),
                shift_widget(),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas")],
        )

    @classmethod
    def execute(cls, history, steps: int, shift: float) -> io.NodeOutput:
        return io.NodeOutput(section_sigmas(history, steps, shift))
