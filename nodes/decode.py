"""FramePack Decode: a history to frames."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.frames import decode_frames
from .schema import History, node_schema, widget


class FramePackDecode(io.ComfyNode):
    """Core's VAE Decode works on the sampler's latent too, all at once and without cross-fades."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeDecode",
            display_name="FramePack Decode",
            description="Decodes a film section by section, each with its neighbour, cross-faded as FramePack does.",
            inputs=[
                widget(History, "history", tooltip="A film, finished or not."),
                widget(io.Vae, "vae", tooltip="HunyuanVideo's VAE."),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="Frames for 30 frames per second.")],
        )

    @classmethod
    def execute(cls, history, vae) -> io.NodeOutput:
        return io.NodeOutput(decode_frames(history, vae))
