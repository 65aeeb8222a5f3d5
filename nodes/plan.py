"""FramePack Plan: what a film will take, before it is made."""

from comfy_api.latest import io, ui

from ..framepack_core.comfy_host.plan_request import (
    THIS_MACHINE,
    model_facts,
    read_machine,
    read_request,
    unknown_model,
)
from ..framepack_core.comfy_host.timeline_picture import draw_timeline
from ..framepack_core.history import new_history
from ..framepack_core.planning.cards import CARDS
from ..framepack_core.planning.plan_text import as_json, as_text
from ..framepack_core.planning.resolve import resolve
from ..framepack_core.run_report import read_speed
from ..framepack_core.section_plan import plan_film
from .history import MODES, length_widget, mode_widget, side_widget, window_widget
from .sampling_parts import cfg_widget, steps_widget
from .schema import History, check_choice, node_schema, widget

WEIGHT_BYTES = {"bf16": 2, "fp8": 1}


class FramePackPlan(io.ComfyNode):
    """Makes nothing: reads sizes, and says what does not go together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativePlan",
            display_name="FramePack Plan",
            description="Says what a film will take before it is made: sections, memory, time, and what does not fit "
            "together.",
            search_aliases=["framepack vram", "framepack time", "timeline", "estimate"],
            is_output_node=True,
            inputs=[
                widget(io.Model, "model", optional=True, tooltip="Open: a released checkpoint in weight_dtype."),
                widget(
                    History,
                    "history",
                    optional=True,
                    tooltip="The film. Connected, mode, length, window and size below are not used.",
                ),
                widget(io.Conditioning, "positive", optional=True, tooltip="Prompts, to see which holds when."),
                widget(io.Conditioning, "negative", optional=True, tooltip="As for the sampler; needed with cfg."),
                widget(io.Vae, "vae", optional=True, tooltip="To see what decoding would take."),
                mode_widget("As in FramePack History: order of the sections."),
                length_widget("Length in seconds at 30 frames per second, rounded to whole sections."),
                window_widget("Latent frames per section (4 frames each)."),
                side_widget("width"),
                side_widget("height"),
                steps_widget(),
                cfg_widget("As in FramePack Sampler, no unit; above 1 every step takes twice as long."),
                widget(
                    io.Combo,
                    "weight_dtype",
                    options=list(WEIGHT_BYTES),
                    default="bf16",
                    tooltip="Weights of the checkpoint to plan with when no model is connected.",
                ),
                widget(
                    io.Combo,
                    "card",
                    options=[THIS_MACHINE, *CARDS],
                    default=THIS_MACHINE,
                    tooltip="What the film would be made on. Change it to see another card.",
                ),
                widget(
                    io.Float,
                    "vram_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    advanced=True,
                    tooltip="GiB of the card that may be used. 0: all that is free or can be freed.",
                ),
                widget(
                    io.Float,
                    "seconds_per_step",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Seconds that a step took at these settings, if you know. 0: from the report, or guessed "
                    "from the card.",
                ),
                widget(
                    io.String,
                    "report",
                    optional=True,
                    force_input=True,
                    tooltip="report_json of FramePack Sampler of another run on this machine: the time is then scaled "
                    "from what was measured.",
                ),
            ],
            outputs=[
                io.String.Output("plan", display_name="plan", tooltip="To read."),
                io.String.Output("plan_json", display_name="plan_json", tooltip="The same in bytes and seconds."),
                io.Image.Output("timeline", display_name="timeline", tooltip="The sections in time."),
            ],
        )

    @classmethod
    def execute(
        cls,
        mode,
        total_second_length,
        latent_window_size,
        width,
        height,
        steps,
        cfg,
        weight_dtype,
        card,
        vram_gb,
        seconds_per_step,
        model=None,
        history=None,
        positive=None,
        negative=None,
        vae=None,
        report=None,
    ) -> io.NodeOutput:
        check_choice("card", card, [THIS_MACHINE, *CARDS])
        check_choice("weight_dtype", weight_dtype, WEIGHT_BYTES)
        settings = {
            "steps": steps,
            "cfg": cfg,
            "has_negative": negative is not None,
            "seconds_per_step": seconds_per_step or None,
            "speed": read_speed(report) if report else None,
        }
        if history is None:
            check_choice("mode", mode, MODES)
            plan = plan_film(MODES[mode], total_second_length, latent_window_size)
            history = new_history(plan, 0, width, height)
            # whether it starts with an image is not said here; most films do
            settings |= {"starts_with_image": True, "has_vision": True}
        facts = unknown_model(WEIGHT_BYTES[weight_dtype]) if model is None else model_facts(model)
        request = read_request(history, facts, positive, vae, settings)
        estimate, messages = resolve(request, read_machine(card, vram_gb, model, history))
        text = as_text(estimate, messages)
        timeline = draw_timeline(estimate.spans, text.splitlines()[len(messages)])
        shown = {**ui.PreviewImage(timeline, cls=cls).as_dict(), "text": (text,)}
        return io.NodeOutput(text, as_json(estimate, messages), timeline, ui=shown)
