"""A video file that grows at both ends: a whole film at every moment."""

import json
from pathlib import Path

import av
import pytest
import torch
from comfy_api.latest import InputImpl
from framepack_pack.framepack_core.comfy_host.growing_video import GrowingVideo
from framepack_pack.framepack_core.comfy_host.video_file import VideoFormat

HEIGHT, WIDTH = 64, 96
FINE = VideoFormat(crf=1, pixel_format="yuv444p")


def grey(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(len(levels), HEIGHT, WIDTH, 3)


def read(path, fps=30):
    """Mean levels of all frames, and their times in frames."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    levels = torch.tensor([frame.to_ndarray(format="rgb24").mean() / 255 for frame in frames])
    return levels.float(), [round(frame.time * fps, 2) for frame in frames]


def ramp(first, last, count):
    return grey(*torch.linspace(first, last, count).tolist())


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("video_format", [FINE, VideoFormat(), VideoFormat(fps=24)])
def test_it_is_the_whole_film_after_every_piece(tmp_path, at_end, video_format):
    video = GrowingVideo(tmp_path / "film.mp4", None, video_format)
    film = torch.zeros(0, HEIGHT, WIDTH, 3)
    for number, (joined, added) in enumerate([(0, 37), (37, 36), (36, 4), (4, 1), (1, 36)]):
        before = film[: len(film) - joined] if at_end else film[joined:]
        joint = torch.rand(1, generator=torch.manual_seed(number)).item()
        joint, new = ramp(joint, joint / 2, joined), ramp(number / 5, 1, added)
        video.grow(at_end, joint if joined else None, new)
        film = torch.cat([before, joint, new] if at_end else [new, joint, before])
        levels, times = read(tmp_path / "film.mp4", video_format.fps)
        assert times == list(range(len(film)))
        torch.testing.assert_close(levels, film.mean(dim=(1, 2, 3)), atol=0.015, rtol=0)
        with av.open(str(tmp_path / "film.mp4")) as container:
            assert container.streams.video[0].frames == len(film)
            assert container.duration / av.time_base == pytest.approx(len(film) / video_format.fps, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_core_opens_it_with_the_workflow(tmp_path):
    metadata = {"workflow": json.dumps({"nodes": ["ä"]})}
    video = GrowingVideo(tmp_path / "film.mp4", metadata)
    video.grow(True, None, ramp(0, 1, 37))
    video.grow(False, ramp(0, 1, 36), ramp(0, 1, 36))
    assert InputImpl.VideoFromFile(str(video.path)).get_frame_count() == 72
    with av.open(str(video.path)) as container:
        assert metadata.items() <= dict(container.metadata).items()
        assert container.streams.video[0].codec_context.colorspace == 1


def test_it_never_overwrites(tmp_path):
    (tmp_path / "film.mp4").write_text("mine")
    (tmp_path / "film_2.mp4").write_text("mine too")
    video = GrowingVideo(tmp_path / "film.mp4")
    video.grow(True, None, ramp(0, 1, 5))
    assert video.path == tmp_path / "film_3.mp4"
    assert len(read(video.path)[0]) == 5
    assert (tmp_path / "film.mp4").read_text() == "mine"
    assert (tmp_path / "film_2.mp4").read_text() == "mine too"


def test_a_file_that_a_player_holds_is_left_and_another_one_goes_on(tmp_path, monkeypatch):
    video = GrowingVideo(tmp_path / "film.mp4")
    video.grow(True, None, ramp(0, 1, 5))
    replace = Path.replace

    def held(source, target):
        if target.name == "film.mp4":
            raise PermissionError(13, "in use")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", held)
    video.grow(True, ramp(0, 1, 5), ramp(0, 1, 4))
    assert len(read(tmp_path / "film.mp4")[0]) == 5
    assert len(read(tmp_path / "film_2.mp4")[0]) == 9
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_film_as_it_was(tmp_path, monkeypatch):
    video = GrowingVideo(tmp_path / "film.mp4")
    video.grow(True, None, ramp(0, 1, 5))

    def full(self, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GrowingVideo, "_copy_packets", full)
    with pytest.raises(OSError, match="No space"):
        video.grow(True, ramp(0, 1, 5), ramp(0, 1, 4))
    assert len(read(tmp_path / "film.mp4")[0]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_without_a_film_there_is_no_file(tmp_path):
    video = GrowingVideo(tmp_path / "new" / "film.mp4")
    assert video.path.exists()
    video.close()
    assert not list((tmp_path / "new").iterdir())
