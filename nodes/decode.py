"""FramePack Decode: a film to frames."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.film_decoding import MODES, SECTIONS, DecodeOptions, decode_frames
from ..framepack_core.constants import PIXELS_PER_LATENT
from .schema import History, check_choice, node_schema, widget


def decode_inputs() -> list:
    """What both decoding nodes ask for."""
    return [
        widget(History, "history", optional=True, tooltip="A film, finished or not."),
        widget(io.Vae, "vae", tooltip="HunyuanVideo's VAE."),
        widget(
            io.Latent,
            "samples",
            optional=True,
            tooltip="Latents to decode in place of the history's own, if something changed them. Alone, without a "
            "history, they are decoded whole.",
        ),
        widget(
            io.Combo,
            "mode",
            options=list(MODES),
            default=SECTIONS,
            optional=True,
            tooltip="Section by section, each with the neighbour it was made to fit, cross-faded as FramePack does; "
            "or the film as one piece, without those fades, which decodes no latent twice.",
        ),
        widget(
            io.Int,
            "chunk",
            default=0,
            min=0,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Latents that the VAE decodes in one go (4 frames each). 0: as many as memory allows, on CUDA any "
            "number. 5 is what FramePack uses; fewer need less memory, more give steadier frames. 1 and 2 are too few.",
        ),
        widget(
            io.Int,
            "tile_size",
            default=0,
            min=0,
            max=4096,
            step=PIXELS_PER_LATENT,
            optional=True,
            advanced=True,
            tooltip="Decodes pictures in tiles of so many pixels a side, for cards with little memory; FramePack's are "
            "256. 0: whole pictures, and tiles only when memory runs out.",
        ),
    ]


def read_options(mode: str, chunk: int, tile_size: int) -> DecodeOptions:
    """The widgets' values. Raises ValueError for values that no decoding has."""
    check_choice("mode", mode, MODES)
    if chunk in (1, 2):
        raise ValueError(f"chunk is {chunk} latents; it must be 0 (as memory allows) or at least 3.")
    if 0 < tile_size < 64:
        raise ValueError(f"tile_size is {tile_size} pixels; it must be 0 (no tiles) or at least 64.")
    return DecodeOptions(mode, chunk, tile_size)


class FramePackDecode(io.ComfyNode):
    """Core's VAE Decode works on the sampler's latent too, all at once and without cross-fades."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeDecode",
            display_name="FramePack Decode",
            description="Decodes a film section by section, each with its neighbour, cross-faded as FramePack does.",
            inputs=decode_inputs(),
            outputs=[io.Image.Output("images", display_name="images", tooltip="Frames for 30 frames per second.")],
        )

    @classmethod
    def execute(cls, vae, history=None, samples=None, mode=SECTIONS, chunk=0, tile_size=0) -> io.NodeOutput:
        options = read_options(mode, chunk, tile_size)
        return io.NodeOutput(decode_frames(vae, history, None if samples is None else samples["samples"], options))
