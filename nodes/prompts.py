"""Section Prompts and Set Range: text and any CONDITIONING for a stretch of the film."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.conditioning import RANGE_KEY, set_values
from ..framepack_core.comfy_host.text_encoding import encode_prompts
from ..framepack_core.constants import GUIDANCE
from ..framepack_core.prompt_ranges import PromptRange, check_range, parse_prompts
from .schema import node_schema, widget

EXAMPLE = "A cat walks through tall grass.\n[2s-4s: The cat stops and looks up.]\n[4s: The cat jumps.]"


class FramePackSectionPrompts(io.ComfyNode):
    """One text box for the whole film."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeSectionPrompts",
            display_name="FramePack Section Prompts",
            description="Encodes one prompt for the film, or several for stretches of it.",
            search_aliases=["timestamped prompts", "prompt schedule", "framepack text encode"],
            inputs=[
                widget(io.Clip, "clip", tooltip="clip_l and llava_llama3, from DualCLIPLoader, type hunyuan_video."),
                widget(
                    io.String,
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    default=EXAMPLE,
                    tooltip="One line: the whole film. Several lines: one per section, the last one for the rest. "
                    "Or headers: [0s-2s: text] in seconds, [2: text] or [2-4: text] in sections (film order, from 0), "
                    "[-1: text] for the last section; a header without an end lasts until the next one; text outside "
                    "holds where no header does. Each prompt is cut at 256 tokens.",
                ),
                widget(
                    io.Float,
                    "guidance",
                    default=GUIDANCE,
                    min=0.0,
                    max=32.0,
                    step=0.1,
                    tooltip="Distilled guidance, no unit. 10 is what FramePack was made with; lower follows the "
                    "prompt less. FluxGuidance behind this node overrides it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="Entries tagged with their stretch of film."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str) -> bool | str:
        try:
            parse_prompts(prompts)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, clip, prompts: str, guidance: float) -> io.NodeOutput:
        return io.NodeOutput(encode_prompts(clip, prompts, guidance))


class FramePackSetRange(io.ComfyNode):
    """Tags what other encoders made; join several with Conditioning (Combine)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeSetRange",
            display_name="FramePack Set Range",
            description="Says for which stretch of the film a conditioning holds.",
            inputs=[
                widget(io.Conditioning, "conditioning", tooltip="From any text encoder."),
                widget(
                    io.Float,
                    "start",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="Where it begins, in the unit below; sections count from 0 in film order.",
                ),
                widget(
                    io.Float,
                    "end",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="Where it ends, in the unit below, not included. 0 lasts to the next range or to the "
                    "end of the film.",
                ),
                widget(
                    io.Combo,
                    "unit",
                    options=["seconds", "sections"],
                    default="seconds",
                    tooltip="Unit of start and end.",
                ),
            ],
            outputs=[io.Conditioning.Output("tagged", display_name="conditioning")],
        )

    @classmethod
    def execute(cls, conditioning, start: float, end: float, unit: str) -> io.NodeOutput:
        prompt_range = PromptRange(start, end or None, "seconds" if unit == "seconds" else "sections")
        check_range(prompt_range)
        return io.NodeOutput(set_values(conditioning, {RANGE_KEY: prompt_range}))
