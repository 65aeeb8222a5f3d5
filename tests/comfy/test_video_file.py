"""Video files that grow while frames come: what a reader finds, and what is left when the disk fills."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from comfy_api.latest import InputImpl
from framepack_pack.framepack_core.comfy_host import video_file
from framepack_pack.framepack_core.comfy_host.video_file import (
    VideoFormat,
    check_audio,
    check_folder,
    check_format,
    keep_whole_fragments,
    open_video,
)

HEIGHT, WIDTH = 64, 96
OPEN = Path.open


def brightening(frames):
    """Grey frames from black to white, so that each one is known by its mean."""
    levels = torch.linspace(0, 1, frames).view(-1, 1, 1, 1)
    return levels.expand(frames, HEIGHT, WIDTH, 3)


def write(path, frames, pieces=7, **changes):
    film = brightening(frames)
    with open_video(path, frames, HEIGHT, WIDTH, **changes) as writer:
        for first in range(0, frames, pieces):
            writer.write(film[first : first + pieces])


def read(path):
    """Mean levels 0..1 of all frames, decoded."""
    with av.open(str(path)) as container:
        return torch.tensor(
            [frame.to_ndarray(format="rgb24").mean() / 255 for frame in container.decode(video=0)]
        ).float()


@pytest.mark.parametrize(
    ("video_format", "codec", "pixels"),
    [
        (VideoFormat(), "h264", "yuv420p"),
        (VideoFormat("h264", 20, 24, "yuv444p"), "h264", "yuv444p"),
        (VideoFormat("h265", 20, 30, "yuv420p10le"), "hevc", "yuv420p10le"),
        (VideoFormat("av1", 30, 29.97), "av1", "yuv420p"),
        (VideoFormat("vp9", 30, 30), "vp9", "yuv420p"),
    ],
)
def test_readers_find_frames_rate_duration_and_colours(tmp_path, video_format, codec, pixels):
    write(tmp_path / "film.mp4", 61, video_format=video_format)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.frames == 61
        assert float(stream.average_rate) == pytest.approx(video_format.fps, abs=1e-3)
        assert container.duration / av.time_base == pytest.approx(61 / video_format.fps, abs=0.01)
        assert stream.codec_context.codec.canonical_name == codec
        assert stream.codec_context.pix_fmt == pixels
        assert (stream.width, stream.height) == (WIDTH, HEIGHT)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
    torch.testing.assert_close(read(tmp_path / "film.mp4"), torch.linspace(0, 1, 61), atol=0.02, rtol=0)
    video = InputImpl.VideoFromFile(str(tmp_path / "film.mp4"))
    assert video.get_frame_count() == 61
    assert float(video.get_frame_rate()) == pytest.approx(video_format.fps, abs=1e-3)
    assert video.get_dimensions() == (WIDTH, HEIGHT)


def test_core_saves_it_with_the_workflow(tmp_path):
    metadata = {"prompt": json.dumps({"1": "ä"}), "workflow": json.dumps({"nodes": []})}
    write(tmp_path / "film.mp4", 31, metadata=metadata)
    InputImpl.VideoFromFile(str(tmp_path / "film.mp4")).save_to(str(tmp_path / "saved.mp4"))
    for name in ("film.mp4", "saved.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert metadata.items() <= dict(container.metadata).items()
            assert container.streams.video[0].frames == 31


@pytest.mark.parametrize(("rate", "channels", "seconds"), [(44100, 2, 10.0), (48000, 1, 0.5), (12345, 2, 10.0)])
def test_audio_is_cut_to_the_film(tmp_path, rate, channels, seconds):
    audio = {"waveform": torch.rand(1, channels, int(rate * seconds)) - 0.5, "sample_rate": rate}
    check_audio(audio)
    write(tmp_path / "film.mp4", 61, audio=audio)
    with av.open(str(tmp_path / "film.mp4")) as container:
        (stream,) = container.streams.audio
        heard = sum(frame.samples for frame in container.decode(audio=0)) / stream.rate
    assert heard == pytest.approx(min(seconds, 61 / 30), abs=0.1)


def test_audio_is_written_in_step_with_the_frames(tmp_path):
    """Otherwise FFmpeg holds all frames back until the sound comes, and a full disk would leave nothing."""
    audio = {"waveform": torch.rand(1, 2, 44100 * 10), "sample_rate": 44100}
    with open_video(tmp_path / "film.mp4", 300, HEIGHT, WIDTH, audio=audio) as writer:
        sizes = []
        for _ in range(4):
            writer.write(torch.rand(60, HEIGHT, WIDTH, 3))
            sizes.append((tmp_path / "film.mp4").stat().st_size)
    assert sizes[1] > 10_000
    assert sizes == sorted(set(sizes))


class FullDisk:
    """A file that takes so many bytes and no more, as the disk's last ones."""

    def __init__(self, path, room):
        self.file, self.room = OPEN(path, "wb", buffering=0), room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if self.file.tell() + len(data) > self.room:
            self.file.write(bytes(data)[: max(self.room - self.file.tell(), 0)])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def seek(self, *place):
        return self.file.seek(*place)

    def tell(self):
        return self.file.tell()


def on_full_disk(monkeypatch, room):
    def open_file(path, mode, **_):
        return FullDisk(path, room) if mode == "wb" else OPEN(path, mode)

    monkeypatch.setattr(Path, "open", open_file)


def noisy(path, frames):
    film = brightening(frames) * 0.9 + torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.manual_seed(0)) * 0.1
    with open_video(path, frames, HEIGHT, WIDTH) as writer:
        for frame in film:
            writer.write(frame.unsqueeze(0))


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9, 0.999])
def test_what_fits_on_a_full_disk_plays(tmp_path, monkeypatch, share):
    noisy(tmp_path / "whole.mp4", 240)
    expected = read(tmp_path / "whole.mp4")
    room = int((tmp_path / "whole.mp4").stat().st_size * share)
    on_full_disk(monkeypatch, room)
    path = tmp_path / "cut.mp4"
    with pytest.raises(
        RuntimeError, match=r"The disk failed at frame \d+ of 240 \(No space left on device\); all but"
    ) as e:
        noisy(path, 240)
    assert str(path) in str(e.value)
    monkeypatch.undo()
    kept = read(path)
    assert len(kept) >= 30
    assert len(kept) >= 240 * share - 60
    torch.testing.assert_close(kept, expected[: len(kept)], atol=0.01, rtol=0)


def test_a_disk_without_room_for_a_second_is_said(tmp_path, monkeypatch):
    on_full_disk(monkeypatch, 1000)
    with pytest.raises(
        RuntimeError, match=r"The disk failed at frame \d+ of 240 \(No space left on device\); nothing was kept"
    ):
        noisy(tmp_path / "film.mp4", 240)


LIMITED = """
import resource, signal, sys, types, torch
from pathlib import Path
pack = types.ModuleType("framepack_pack")
pack.__path__ = [{root!r}]
sys.modules[pack.__name__] = pack
from framepack_pack.framepack_core.comfy_host.video_file import open_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    with open_video(Path({path!r}), 240, 32, 48) as writer:
        for _ in range(240):
            writer.write(torch.rand(1, 32, 48, 3))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_the_kernels_own_refusal_is_one_sentence(tmp_path):
    """The kernel ends writes past this size as it ends them on a full disk: in the middle, with an OSError."""
    root, path = Path(__file__).resolve().parents[2], tmp_path / "film.mp4"
    code = LIMITED.format(root=str(root), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "(File too large); all but the last second or so of that was kept and plays" in done.stdout
    assert len(read(path)) >= 5


def test_an_interrupted_film_plays_up_to_there(tmp_path):
    path = tmp_path / "film.mp4"

    def interrupted():
        with open_video(path, 240, HEIGHT, WIDTH) as writer:
            writer.write(brightening(240)[:130])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 30 <= len(read(path)) <= 130


def test_files_that_are_no_film_have_no_fragment(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\0" * 10)
    assert not keep_whole_fragments(tmp_path / "film.mp4")


def test_missing_encoders_are_refused(monkeypatch):
    monkeypatch.setitem(video_file.ENCODERS, "h266", video_file.Encoder("libvvenc_none", {}))
    with pytest.raises(ValueError, match=r"This PyAV .* has no encoder for h266 .*; choose one of h264, h265"):
        check_format(VideoFormat("h266"))


def test_pixel_formats_that_a_codec_lacks_are_refused():
    with pytest.raises(ValueError, match=r"av1 cannot be yuv444p; choose one of yuv420p, yuv420p10le\."):
        check_format(VideoFormat("av1", pixel_format="yuv444p"))


def test_folders_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"temporary folder .*file.below cannot be written \(Not a directory\); give"):
        check_folder(tmp_path / "file" / "below")
    check_folder(tmp_path / "new")


def test_odd_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="The audio has 4 channels"):
        check_audio({"waveform": torch.zeros(1, 4, 100), "sample_rate": 44100})
