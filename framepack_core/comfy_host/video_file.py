"""Frames to a video file, encoded and written while they come, with PyAV, which ComfyUI requires.

The file is a fragmented MP4 while it grows, one fragment a second, and an ordinary one when it is closed
(hybrid_fragmented, FFmpeg 7.1). So what has been written plays, whatever happens after it.
"""

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import torch
from torch import Tensor

from ..constants import FRAMES_PER_SECOND


class Encoder(NamedTuple):
    """An encoder of FFmpeg, and options that keep it from talking."""

    name: str
    options: dict[str, str]


ENCODERS = {
    "h264": Encoder("libx264", {}),
    "h265": Encoder("libx265", {"x265-params": "log-level=error"}),
    "av1": Encoder("libsvtav1", {}),
    "vp9": Encoder("libvpx-vp9", {}),
}
PIXEL_FORMATS = ("yuv420p", "yuv420p10le", "yuv444p")
CRF = 16  # FP demo_gradio.py: mp4_crf
AUDIO_ENCODER, AUDIO_RATE = "aac", 48000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
BT709 = 1  # primaries, transfer, matrix; and 1 is limited range: what players take HD video for
MOVFLAGS = "use_metadata_tags+hybrid_fragmented"  # the first keeps the workflow's entries


class VideoFormat(NamedTuple):
    """How a film is encoded."""

    codec: str = "h264"
    crf: int = CRF
    fps: float = FRAMES_PER_SECOND
    pixel_format: str = "yuv420p"


def check_format(video_format: VideoFormat) -> None:
    """Raises ValueError for an encoder that this PyAV lacks, and for a pixel format that the encoder lacks."""
    name = ENCODERS[video_format.codec].name
    try:
        encoder = av.Codec(name, "w")
    except ValueError:
        there = [codec for codec, encoder in ENCODERS.items() if encoder.name in av.codecs_available]
        raise ValueError(
            f"This PyAV ({av.__version__}) has no encoder for {video_format.codec} ({name}); choose one of "
            f"{', '.join(there)}, or install the PyAV of ComfyUI's requirements."
        ) from None
    formats = {known.name for known in encoder.video_formats or ()}
    if formats and video_format.pixel_format not in formats:
        raise ValueError(
            f"{video_format.codec} cannot be {video_format.pixel_format}; choose one of "
            f"{', '.join(known for known in PIXEL_FORMATS if known in formats)}."
        )


def check_folder(folder: Path, kind: str = "temporary", option: str = "--temp-directory") -> None:
    """Raises ValueError when no file can be made in the folder; option: of ComfyUI, for another one of the kind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"ComfyUI's {kind} folder {folder} cannot be written ({error.strerror}); give another one with {option}."
        ) from None


def check_audio(audio: Mapping[str, Any] | None) -> None:
    """Raises ValueError for an AUDIO, waveform [B, channels, samples], that is neither mono, stereo nor 5.1."""
    if audio is not None and audio["waveform"].shape[1] not in LAYOUTS:
        raise ValueError(f"The audio has {audio['waveform'].shape[1]} channels; it must have 1, 2 or 6.")


@contextmanager
def open_video(
    path: Path,
    frames: int,
    height: int,
    width: int,
    video_format: VideoFormat = VideoFormat(),  # noqa: B008 - a tuple
    audio: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator["VideoWriter"]:
    """A writer for a film of so many frames; the file is whole when the block ends.

    However else it ends, what has been written plays. Raises RuntimeError, which says so, when the disk fills.
    """
    with path.open("wb", buffering=0) as raw:
        file, writer = _Sink(raw), None
        try:
            with av.open(file, "w", format="mp4", options={"movflags": MOVFLAGS}) as container:
                container.metadata.update(metadata or {})
                writer = VideoWriter(container, height, width, video_format, audio, frames / video_format.fps)
                try:
                    yield writer
                    writer.finish()
                except BaseException:
                    file.closed_early = True  # or closing would make an ordinary file of it, without its end
                    raise
        except BaseException:
            kept = keep_whole_fragments(path)
            if file.error is None:
                raise
            outcome = (
                f"all but the last second or so of that was kept and plays: {path}" if kept else "nothing was kept"
            )
            raise RuntimeError(
                f"The disk failed at frame {writer.frames if writer else 0} of {frames} ({file.error.strerror}); "
                f"{outcome}."
            ) from None


class VideoWriter:
    """Encodes frames, and the audio of the time that they take, in step."""

    def __init__(
        self,
        container: Any,
        height: int,
        width: int,
        video_format: VideoFormat,
        audio: Mapping[str, Any] | None,
        seconds: float,
    ) -> None:
        self.frames = 0
        self._container = container
        self._rate = Fraction(video_format.fps).limit_denominator(1001)
        self._deep = "10" in video_format.pixel_format
        encoder = ENCODERS[video_format.codec]
        options = {"crf": str(video_format.crf), **encoder.options}
        self._video = container.add_stream(encoder.name, rate=self._rate, options=options)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, video_format.pixel_format
        context = self._video.codec_context
        context.gop_size = max(round(self._rate), 1)  # a fragment begins at a key frame
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = BT709
        self._audio = None
        if audio is not None:
            self._audio = _AudioTrack(container, audio["waveform"][0], int(audio["sample_rate"]), seconds)

    def write(self, frames: Tensor) -> None:
        """Frames [F, H, W, 3], values 0 to 1, on the CPU. Raises OSError when the file cannot be written."""
        for picture in frames:  # one by one: all at once would be held as levels too
            # truncated to whole levels, as FP's writer and core's do
            if self._deep:
                levels = (picture * 65535).clamp(0, 65535).to(torch.int32).numpy().astype("uint16")
                frame = av.VideoFrame.from_ndarray(levels, format="rgb48le")
            else:
                frame = av.VideoFrame.from_ndarray(
                    (picture * 255).clamp(0, 255).to(torch.uint8).numpy(), format="rgb24"
                )
            frame = frame.reformat(format=self._video.pix_fmt, dst_colorspace=BT709)
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            self._encode(frame)
            self.frames += 1
        if self._audio:
            self._audio.write_until(float(self.frames / self._rate))

    def finish(self) -> None:
        """What the encoders still hold."""
        self._encode(None)
        if self._audio:
            self._audio.finish()

    def _encode(self, frame: Any) -> None:
        for packet in self._video.encode(frame):
            packet.duration = packet.duration or round(1 / self._rate / packet.time_base)  # AV1 and VP9 give none
            self._container.mux(packet)


class _AudioTrack:
    """One film's audio [channels, samples], cut to its length."""

    def __init__(self, container: Any, waveform: Tensor, rate: int, seconds: float) -> None:
        self._container, self._rate, self._done = container, rate, 0
        self._waveform = waveform[:, : round(seconds * rate)].float().cpu()
        self._layout = LAYOUTS[waveform.shape[0]]
        known = av.Codec(AUDIO_ENCODER, "w").audio_rates or ()
        self._stream = container.add_stream(AUDIO_ENCODER, rate=rate if rate in known else AUDIO_RATE)
        self._stream.codec_context.layout = self._layout

    def write_until(self, seconds: float) -> None:
        end = min(round(seconds * self._rate), self._waveform.shape[1])
        if end > self._done:
            samples = self._waveform[:, self._done : end].contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._done = end

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


class _Sink:
    """The file as FFmpeg writes it. It remembers why a write failed, and takes no more once the film is cut short."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.error: OSError | None = None
        self.closed_early = False

    def write(self, data: bytes) -> int:
        if self.closed_early or self.error:
            return len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._raw.write(view) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


def keep_whole_fragments(path: Path) -> bool:
    """Cuts a growing MP4 after its last whole fragment, and says whether it has one."""
    size, position, end = path.stat().st_size, 0, 0
    with path.open("r+b") as file:
        while position + 16 <= size:
            file.seek(position)
            length, kind, long_length = struct.unpack(">I4sQ", file.read(16))
            length = long_length if length == 1 else length
            if length < 8 or position + length > size:
                break
            position += length
            if kind == b"mdat":
                end = position
        if end:
            file.truncate(end)
    return bool(end)
