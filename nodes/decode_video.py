"""FramePack Decode to Video: a film to a video file, without holding its frames."""

from contextlib import ExitStack
from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io, ui

from ..framepack_core.comfy_host.film_decoding import SECTIONS, stream_frames
from ..framepack_core.comfy_host.video_file import (
    CRF,
    ENCODERS,
    PIXEL_FORMATS,
    VideoFormat,
    check_audio,
    check_folder,
    check_format,
    open_video,
)
from ..framepack_core.constants import FRAMES_PER_SECOND
from .decode import decode_inputs, read_options
from .file_metadata import workflow_metadata
from .schema import check_choice, node_schema, widget


class FramePackDecodeVideo(io.ComfyNode):
    """Frames go from the VAE into the encoder, so memory does not grow with the film."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeDecodeVideo",
            display_name="FramePack Decode to Video",
            description="Decodes a film straight into a video file, in the same memory for any length.",
            search_aliases=["framepack video", "decode to mp4"],
            inputs=[
                *decode_inputs(),
                widget(
                    io.Combo,
                    "codec",
                    options=list(ENCODERS),
                    default="h264",
                    tooltip="How the film is compressed. h264 plays everywhere; h265 and av1 are smaller and slower to "
                    "make; vp9 is for browsers.",
                ),
                widget(
                    io.Int,
                    "crf",
                    default=CRF,
                    min=0,
                    max=63,
                    tooltip="Quality of the compression, no unit: lower is better and larger. 16 is FramePack's, 23 is "
                    "usual for h264 (at most 51), 30 for av1 and vp9.",
                ),
                widget(
                    io.Float,
                    "fps",
                    default=float(FRAMES_PER_SECOND),
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the file. FramePack's films are made for 30; others play slower or "
                    "faster.",
                ),
                widget(
                    io.Combo,
                    "pixel_format",
                    options=list(PIXEL_FORMATS),
                    default=PIXEL_FORMATS[0],
                    advanced=True,
                    tooltip="yuv420p plays everywhere; yuv420p10le has smoother gradients; yuv444p keeps all colour "
                    "detail. Not every player and codec has the last two.",
                ),
                widget(io.Audio, "audio", optional=True, tooltip="Sound for the film, cut to its length."),
                widget(
                    io.String,
                    "report",
                    optional=True,
                    force_input=True,
                    tooltip="What the run took, from FramePack Sampler's report_json; kept in the file beside the "
                    "workflow.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.Video.Output(
                    "video",
                    display_name="video",
                    is_output_list=True,
                    tooltip="A file in ComfyUI's temporary folder, for Save Video; one for each film of a batch.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, codec, pixel_format) -> bool | str:
        """What would end the run after hours of sampling is said before it begins."""
        try:
            check_choice("codec", codec, ENCODERS)
            check_choice("pixel_format", pixel_format, PIXEL_FORMATS)
            check_format(VideoFormat(codec, pixel_format=pixel_format))
            check_folder(Path(folder_paths.get_temp_directory()))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        vae,
        codec,
        crf,
        fps,
        pixel_format,
        history=None,
        samples=None,
        mode=SECTIONS,
        chunk=0,
        tile_size=0,
        audio=None,
        report=None,
    ) -> io.NodeOutput:
        problem = cls.validate_inputs(codec, pixel_format)
        if isinstance(problem, str):
            raise ValueError(problem)
        check_audio(audio)
        samples = None if samples is None else samples["samples"]
        stream = stream_frames(vae, history, samples, read_options(mode, chunk, tile_size))
        films, frames, height, width = stream.shape
        video_format = VideoFormat(codec, crf, fps, pixel_format)
        folder = Path(folder_paths.get_temp_directory())
        _, name, counter, _, _ = folder_paths.get_save_image_path("framepack", str(folder))
        paths = [folder / f"{name}_{counter + number:05}_.mp4" for number in range(films)]
        metadata = workflow_metadata(cls.hidden, report)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(open_video(path, frames, height, width, video_format, audio, metadata))
                for path in paths
            ]
            for piece in stream.pieces:
                for writer, film in zip(writers, piece, strict=True):
                    writer.write(film)
                    del film
                del piece  # or it would stay in memory while the next one is decoded
        shown = ui.PreviewVideo([ui.SavedResult(path.name, "", io.FolderType.temp) for path in paths])
        return io.NodeOutput([InputImpl.VideoFromFile(str(path)) for path in paths], ui=shown)
