"""History nodes: start a film, give one section what it sees, add what was made."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.conditioning import check_conditioning, section_conditioning
from ..framepack_core.comfy_host.section_denoiser import SectionNoise
from ..framepack_core.constants import LATENT_WINDOW_SIZE, SECONDS, SIZE_MULTIPLE
from ..framepack_core.history import append_section, due_section, film_latents, new_history, section_shape
from ..framepack_core.packing import pack_history
from ..framepack_core.section_plan import Direction, parse_paddings, plan_film
from .schema import History, check_choice, node_schema, widget

MODES = {"backward (FramePack)": Direction.BACKWARD, "forward (F1)": Direction.FORWARD}


class FramePackStartHistory(io.ComfyNode):
    """Everything about a film that does not depend on the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeStartHistory",
            display_name="FramePack History",
            description="Plans a film and starts its history: length, direction, images, seed.",
            search_aliases=["framepack length", "start history"],
            inputs=[
                mode_widget(
                    "Order of the sections. Backward is for FramePackI2V checkpoints and drifts least; forward is for "
                    "F1 checkpoints and moves more."
                ),
                length_widget(
                    "Length in seconds at 30 frames per second, rounded to whole sections (of 1.2 s at window 9)."
                ),
                window_widget(
                    "Latent frames per section (4 frames each). The checkpoints were trained with 9; fewer need less "
                    "memory."
                ),
                widget(
                    io.String,
                    "latent_paddings",
                    default="",
                    advanced=True,
                    tooltip="Backward only: distance of each section to the start image, in sections, in the order of "
                    "generation, as in 3, 2, 2, 1, 0. Empty gives FramePack's own.",
                ),
                widget(
                    io.Int,
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise of all sections; same seed, same film.",
                ),
                side_widget("width"),
                side_widget("height"),
                widget(
                    io.Latent,
                    "start_latent",
                    optional=True,
                    tooltip="The first frame, from FramePack Start Image or VAE Encode. Open: text to video.",
                ),
                widget(
                    io.ClipVisionOutput,
                    "clip_vision_output",
                    optional=True,
                    tooltip="What the vision encoder sees in the start image. Needed with a start image.",
                ),
                widget(
                    io.Latent,
                    "end_latent",
                    optional=True,
                    tooltip="Backward only: an image that the film should lead to, of the start image's size.",
                ),
            ],
            outputs=[History.Output("history", display_name="history")],
        )

    @classmethod
    def execute(
        cls,
        mode,
        total_second_length,
        latent_window_size,
        latent_paddings,
        seed,
        width,
        height,
        start_latent=None,
        clip_vision_output=None,
        end_latent=None,
    ) -> io.NodeOutput:
        check_choice("mode", mode, MODES)
        plan = plan_film(MODES[mode], total_second_length, latent_window_size, parse_paddings(latent_paddings))
        history = new_history(
            plan,
            seed,
            width,
            height,
            start_latent=None if start_latent is None else start_latent["samples"],
            end_latent=None if end_latent is None else end_latent["samples"],
            image_embeds=None if clip_vision_output is None else clip_vision_output.last_hidden_state,
        )
        return io.NodeOutput(history)


class FramePackApplyHistory(io.ComfyNode):
    """The primitive for graphs wired section by section; the sampler node does the same inside."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeApplyHistory",
            display_name="FramePack Apply History",
            description="Prepares the next section for any sampler: conditioning, noise and empty latent.",
            inputs=[
                widget(io.Conditioning, "positive", tooltip="Prompts, tagged with ranges or not."),
                widget(History, "history", tooltip="The film so far."),
                widget(io.Conditioning, "negative", optional=True, tooltip="Only needed when cfg is above 1."),
            ],
            outputs=[
                io.Conditioning.Output("section_positive", display_name="positive"),
                io.Conditioning.Output("section_negative", display_name="negative"),
                io.Noise.Output("noise", display_name="noise", tooltip="This section's part of the film's noise."),
                io.Latent.Output("latent", display_name="latent", tooltip="Empty latent of one section."),
            ],
        )

    @classmethod
    def execute(cls, positive, history, negative=None) -> io.NodeOutput:
        section = due_section(history)
        packed = pack_history(history, section)
        applied = []
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if conditioning is not None:
                check_conditioning(conditioning, history, name)
                conditioning = section_conditioning(conditioning, history, section, packed)
            applied.append(conditioning)
        latent = {"samples": packed.history_1x.new_zeros(section_shape(history))}
        return io.NodeOutput(*applied, SectionNoise(history), latent)


class FramePackAppendSection(io.ComfyNode):
    """Closes the round: the sampled section joins the film."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeAppendSection",
            display_name="FramePack Append Section",
            description="Adds a sampled section to the history.",
            inputs=[
                widget(History, "history", tooltip="The history that FramePack Apply History had."),
                widget(io.Latent, "samples", tooltip="What the sampler made of that section's latent."),
            ],
            outputs=[
                History.Output("history_out", display_name="history"),
                io.Latent.Output("latent", display_name="latent", tooltip="The film so far, in film order."),
            ],
        )

    @classmethod
    def execute(cls, history, samples) -> io.NodeOutput:
        history = append_section(history, samples["samples"])
        return io.NodeOutput(history, {"samples": film_latents(history)})


def mode_widget(tooltip: str):
    """Order of a film's sections."""
    return widget(io.Combo, "mode", options=list(MODES), default=next(iter(MODES)), tooltip=tooltip)


def length_widget(tooltip: str):
    """Length of a film."""
    return widget(io.Float, "total_second_length", default=SECONDS, min=0.1, max=3600.0, step=0.1, tooltip=tooltip)


def window_widget(tooltip: str):
    """Length of a section."""
    return widget(
        io.Int, "latent_window_size", default=LATENT_WINDOW_SIZE, min=1, max=33, advanced=True, tooltip=tooltip
    )


def side_widget(name: str):
    """Width or height of a film."""
    return widget(
        io.Int,
        name,
        default=640,
        min=64,
        max=2048,
        step=SIZE_MULTIPLE,
        tooltip=f"{name.capitalize()} in pixels, a multiple of 16. Used without a start image only.",
    )
