"""A film straight into a video file: the same frames, in the same memory for any length."""

import json
import subprocess
import sys
from pathlib import Path

import av
import folder_paths
import pytest
import torch
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.nodes.decode import FramePackDecode
from framepack_pack.nodes.decode_video import FramePackDecodeVideo

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 2 * 12 + 1


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """ComfyUI's temporary folder."""
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return tmp_path / "temp"


@pytest.fixture
def film(new_film):
    def make(batch=1):
        start = torch.randn(batch, 16, 1, 8, 8, generator=torch.manual_seed(3))
        return generate(new_film("backward", 2, start_latent=start), lambda section, packed, noise: noise)

    return make


def decode_video(vae, *inputs, codec="h264", crf=16, fps=30.0, pixel_format="yuv420p", **others):
    """The node with its defaults."""
    return FramePackDecodeVideo.execute(vae, codec, crf, fps, pixel_format, *inputs, **others)


def pixels(path):
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def test_the_file_has_the_frames_of_decode(tiny, film, temporary):
    history = film()
    images = FramePackDecode.execute(tiny.vae, history).args[0]
    made = decode_video(tiny.vae, history, fps=24.0, crf=1, pixel_format="yuv444p")
    (video,) = made.args[0]
    assert video.get_dimensions() == (64, 64)
    assert video.get_frame_count() == FRAMES
    assert video.get_duration() == pytest.approx(FRAMES / 24, abs=0.01)
    shown = made.ui.as_dict()["images"][0]
    assert (temporary / shown["filename"]).is_file()
    assert shown["type"] == "temp"
    got = pixels(temporary / shown["filename"]) / 255
    assert got.shape == images.shape
    assert float((got - images).abs().mean()) < 0.01


def test_every_film_of_a_batch_has_its_file_and_none_is_overwritten(tiny, film, temporary):
    latents = {"samples": film_latents(film(2))}
    for count in (2, 4):
        videos = decode_video(tiny.vae, None, latents, "whole").args[0]
        assert len(videos) == 2
        assert len(list(temporary.iterdir())) == count
    first, second = (pixels(video.get_stream_source()) for video in videos)
    assert not torch.equal(first, second)


def test_the_workflow_is_kept_as_save_video_keeps_it(tiny, film, temporary, monkeypatch):
    class Hidden:
        prompt, extra_pnginfo = {"1": {"class_type": "A"}}, {"workflow": {"nodes": [1]}}

    monkeypatch.setattr(FramePackDecodeVideo, "hidden", Hidden, raising=False)
    audio = {"waveform": torch.zeros(1, 2, 44100), "sample_rate": 44100}
    (video,) = decode_video(tiny.vae, film(), audio=audio).args[0]
    with av.open(video.get_stream_source()) as container:
        assert json.loads(container.metadata["prompt"]) == Hidden.prompt
        assert json.loads(container.metadata["workflow"]) == Hidden.extra_pnginfo["workflow"]
        assert len(container.streams.audio) == 1


def test_what_cannot_be_written_is_said_before_anything_runs(tiny, film, tmp_path, monkeypatch):
    calls = []
    hook = tiny.vae.first_stage_model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    cases = [
        ("vp8", "yuv420p", "codec is 'vp8', which is not in its list"),
        ("av1", "yuv444p", "av1 cannot be yuv444p"),
    ]
    for codec, pixel_format, message in cases:
        assert message in FramePackDecodeVideo.validate_inputs(codec, pixel_format)
        with pytest.raises(ValueError, match=message):
            decode_video(tiny.vae, film(), codec=codec, pixel_format=pixel_format)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "file" / "temp"))
    assert "cannot be written" in FramePackDecodeVideo.validate_inputs("h264", "yuv420p")
    with pytest.raises(ValueError, match="cannot be written"):
        decode_video(tiny.vae, film())
    hook.remove()
    assert not calls


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_memory_does_not_grow_with_the_film():
    """12 sections of 256x256 are 340 MB as IMAGE in float32, and more while pieces are joined."""
    command = [sys.executable, str(ROOT / "scripts" / "measure_video_memory.py"), "--sections", "12", "--size", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["frames"] == 12 * 36 + 1
    assert report["duration_s"] == pytest.approx(report["frames"] / 30, abs=0.01)
    assert report["image_mib"] > 320
    assert report["grown_mib"] < 300
