"""Start Image and Resolution: from a picture to what a film starts with."""

from comfy_api.latest import io

from ..framepack_core.buckets import nearest_bucket
from ..framepack_core.comfy_host.frames import encode_start
from ..framepack_core.constants import PIXELS_PER_LATENT, RESOLUTION
from .schema import node_schema, widget


def resolution_widget():
    """Side of a square of the film's area, in pixels."""
    return widget(
        io.Int,
        "resolution",
        default=RESOLUTION,
        min=64,
        max=2048,
        step=16,
        tooltip="Side in pixels of a square with the film's area. 640 gives the sizes FramePack was trained with; "
        "lower is faster, higher needs more memory.",
    )


class FramePackResolution(io.ComfyNode):
    """For those who resize and encode by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeResolution",
            display_name="FramePack Resolution",
            description="Finds the film size that fits an image best, among those FramePack was trained with.",
            search_aliases=["find nearest bucket"],
            inputs=[
                widget(io.Image, "image", tooltip="The start image; only its shape is used."),
                resolution_widget(),
            ],
            outputs=[io.Int.Output("width", display_name="width"), io.Int.Output("height", display_name="height")],
        )

    @classmethod
    def execute(cls, image, resolution: int) -> io.NodeOutput:
        height, width = nearest_bucket(image.shape[1], image.shape[2], resolution)
        return io.NodeOutput(width, height)


class FramePackStartImage(io.ComfyNode):
    """Resize, VAE encode and CLIP vision encode in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeStartImage",
            display_name="FramePack Start Image",
            description="Fits an image to the nearest film size, encodes it, and looks at it with CLIP vision.",
            search_aliases=["framepack image encode", "find nearest bucket"],
            inputs=[
                widget(
                    io.Image,
                    "image",
                    tooltip="The first frame of the film (or its end frame). Several images "
                    "make several films at once.",
                ),
                widget(io.Vae, "vae", tooltip="HunyuanVideo's VAE."),
                widget(
                    io.ClipVision,
                    "clip_vision",
                    optional=True,
                    tooltip="sigclip_vision_patch14_384. Leave open for an end image.",
                ),
                widget(
                    io.Latent,
                    "like",
                    optional=True,
                    tooltip="For an end image: the start latent, whose size it then takes instead of its own.",
                ),
                resolution_widget(),
            ],
            outputs=[
                io.Latent.Output("start_latent", display_name="start_latent"),
                io.ClipVisionOutput.Output("clip_vision_output", display_name="clip_vision_output"),
                io.Image.Output("fitted", display_name="image", tooltip="The image as the film will show it."),
                io.Int.Output("width", display_name="width"),
                io.Int.Output("height", display_name="height"),
            ],
        )

    @classmethod
    def execute(cls, image, vae, resolution: int, clip_vision=None, like=None) -> io.NodeOutput:
        if like is None:
            height, width = nearest_bucket(image.shape[1], image.shape[2], resolution)
        else:
            height, width = (side * PIXELS_PER_LATENT for side in like["samples"].shape[-2:])
        start = encode_start(image, vae, clip_vision, height, width)
        return io.NodeOutput({"samples": start.latent}, start.vision, start.image, width, height)
