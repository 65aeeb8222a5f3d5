"""FramePack Sampler: all sections of a film."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.early_look import OFF
from ..framepack_core.comfy_host.run_record import RunRecord
from ..framepack_core.comfy_host.section_denoiser import Sampling, check_sampling, sample_sections, unipc_sampler
from ..framepack_core.history import film_latents
from ..framepack_core.schedule import section_sigmas
from .early_look import PREFIX, look_inputs, look_path, make_look, show_look
from .file_metadata import workflow_metadata
from .sampling_parts import cfg_widget, shift_widget, steps_widget
from .schema import History, node_schema, widget


class FramePackSampler(io.ComfyNode):
    """A loop over what FramePack Apply History, a sampler and FramePack Append Section do for one section."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeSampler",
            display_name="FramePack Sampler",
            description="Makes the sections of a film that are still missing, one after the other.",
            search_aliases=["framepack", "long video", "image to video", "F1"],
            inputs=[
                widget(io.Model, "model", tooltip="A FramePack model; LoRAs, caches and model patches apply."),
                widget(io.Conditioning, "positive", tooltip="Prompts; ranges choose what holds for a section."),
                widget(History, "history", tooltip="From FramePack History, or of an unfinished film to go on with."),
                widget(
                    io.Conditioning,
                    "negative",
                    optional=True,
                    tooltip="What to keep away from. Needed and used only when cfg is above 1.",
                ),
                widget(
                    io.Sampler, "sampler", optional=True, tooltip="Any sampler. Open: FramePack UniPC, as the original."
                ),
                widget(
                    io.Sigmas,
                    "sigmas",
                    optional=True,
                    tooltip="Any noise schedule. Open: FramePack's own for steps and shift; connected, those two "
                    "widgets are not used.",
                ),
                steps_widget(),
                cfg_widget(
                    "Real classifier-free guidance, no unit. 1 is usual and skips the negative prompt; above 1 every "
                    "step takes twice as long."
                ),
                widget(
                    io.Float,
                    "guidance_rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="0 to 1: tames the contrast that a high cfg brings. Has no effect at cfg 1.",
                ),
                shift_widget(),
                widget(
                    io.Int,
                    "max_sections",
                    default=0,
                    min=0,
                    max=10000,
                    advanced=True,
                    tooltip="Stop after this many sections; connect history to another sampler to go on. 0 makes all.",
                ),
                *look_inputs(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                History.Output("history_out", display_name="history"),
                io.Latent.Output("latent", display_name="latent", tooltip="The film so far, in film order."),
                io.String.Output("report", display_name="report", tooltip="What the run took, to read."),
                io.String.Output(
                    "report_json",
                    display_name="report_json",
                    tooltip="The same for FramePack Decode to Video and FramePack Plan.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, early_look=OFF, filename_prefix=PREFIX) -> bool | str:
        """A folder that cannot be written is said before other nodes have run."""
        try:
            look_path(early_look, filename_prefix)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        history,
        steps,
        cfg,
        guidance_rescale,
        shift,
        max_sections,
        negative=None,
        sampler=None,
        sigmas=None,
        vae=None,
        early_look=OFF,
        filename_prefix=PREFIX,
    ) -> io.NodeOutput:
        check_sampling(model, positive, negative, history, cfg, guidance_rescale)
        sampling = Sampling(
            sampler=unipc_sampler() if sampler is None else sampler,
            sigmas=section_sigmas(history, steps, shift) if sigmas is None else sigmas,
            cfg=cfg,
            guidance_rescale=guidance_rescale,
        )
        sections = max_sections or len(history.sections)
        record = RunRecord(history)
        look = make_look(early_look, vae, filename_prefix, history.shape[0], workflow_metadata(cls.hidden))
        history = sample_sections(record.watch(model), positive, negative, history, sampling, sections, look)
        report = record.report(model, positive, sampling)
        latent = {"samples": film_latents(history)}
        return io.NodeOutput(history, latent, report.as_text(), report.as_json(), ui=show_look(look))
