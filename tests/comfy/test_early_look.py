"""Finished sections shown and written while later ones are made; sampling is the same with and without."""

import json
import logging
import threading
import time
from functools import partial
from pathlib import Path

import av
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import pytest
import torch
from comfy.taesd.taehv import TAEHV
from framepack_pack.framepack_core.comfy_host import early_look
from framepack_pack.framepack_core.comfy_host.early_look import CHUNK, EarlyLook
from framepack_pack.framepack_core.comfy_host.growing_video import GrowingVideo
from framepack_pack.framepack_core.comfy_host.vae_decoder import VaeDecoder
from framepack_pack.framepack_core.comfy_host.video_file import VideoFormat
from framepack_pack.framepack_core.growing_film import GrowingFilm
from framepack_pack.nodes.decode import FramePackDecode
from framepack_pack.nodes.sampler import FramePackSampler
from PIL import Image
from sampler_run import sample as sample_steps

KINDS = pytest.mark.parametrize("kind", ["backward", "forward"])
SECTION = 4 * 3  # frames
STEPS = 2
sample = partial(sample_steps, steps=STEPS)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def fine(monkeypatch):
    """Files whose pixels can be compared."""
    made = GrowingVideo.__init__
    monkeypatch.setattr(
        GrowingVideo,
        "__init__",
        lambda self, path, metadata=None: made(self, path, metadata, VideoFormat(crf=1, pixel_format="yuv444p")),
    )


@pytest.fixture
def film(new_film):
    """64 pixels, because encoders do not like less."""

    def make(kind, count=3, batch=1):
        return new_film(
            kind, count, batch, start_latent=torch.randn(batch, 16, 1, 8, 8, generator=torch.manual_seed(3))
        )

    return make


def files(output):
    return sorted(path for path in output.rglob("*") if path.is_file())


def pixels(path):
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def assert_is_the_film(path, tiny, history):
    """The file has the frames of FramePack Decode."""
    images = FramePackDecode.execute(tiny.vae, history, chunk=CHUNK).args[0]
    got = pixels(path) / 255
    assert got.shape == images.shape
    assert float((got - images).abs().mean(dim=(1, 2, 3)).max()) < 0.02


def cancel_at(monkeypatch, updates):
    """The user cancels after this many updates of the bar, which are steps and looks."""
    steps = []

    def count(bar, value, total=None, preview=None):
        steps.append(value)
        if len(steps) == updates:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", count)


@KINDS
@pytest.mark.parametrize("look", ["preview", "file"])
def test_the_film_is_bit_equal_with_and_without(tiny, positive, film, output, kind, look):
    plain, latent = sample(tiny, positive, film(kind))
    seen, seen_latent = sample(tiny, positive, film(kind), vae=tiny.vae, early_look=look)
    assert torch.equal(latent["samples"], seen_latent["samples"])
    assert all(map(torch.equal, plain.sections, seen.sections))
    assert len(files(output)) == (look == "file")


@KINDS
def test_the_file_is_the_film_so_far_after_every_section(tiny, positive, film, output, fine, monkeypatch, kind):
    written, lengths = [], []
    grow = GrowingVideo.grow

    def note(self, *pieces):
        assert threading.current_thread() is not threading.main_thread()
        grow(self, *pieces)
        written.append(pixels(self.path))

    monkeypatch.setattr(GrowingVideo, "grow", note)
    history, _ = sample(tiny, positive, film(kind), vae=tiny.vae, early_look="file")
    assert [path.relative_to(output).as_posix() for path in files(output)] == ["framepack/early_look_00001_.mp4"]
    so_far = film(kind)
    for got in written:
        so_far, _ = sample(tiny, positive, so_far, max_sections=1)
        images = FramePackDecode.execute(tiny.vae, so_far, chunk=CHUNK).args[0]
        lengths.append(len(got))
        assert got.shape == images.shape
        assert float((got / 255 - images).abs().mean(dim=(1, 2, 3)).max()) < 0.02
    joins_start = {"forward": 1, "backward": 3}[kind]
    assert lengths == [SECTION * n + (1 if n >= joins_start else -3) for n in (1, 2, 3)]
    assert_is_the_film(files(output)[0], tiny, history)


@KINDS
@pytest.mark.parametrize(("sections", "updates"), [(1, STEPS + 2), (2, 2 * STEPS + 3)])
def test_after_a_cancel_the_file_has_all_finished_sections(
    tiny, positive, film, output, fine, monkeypatch, kind, sections, updates
):
    with monkeypatch.context() as patch:
        cancel_at(patch, updates)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(tiny, positive, film(kind), vae=tiny.vae, early_look="file")
    history, _ = sample(tiny, positive, film(kind), max_sections=sections)
    assert_is_the_film(files(output)[0], tiny, history)


def test_a_cancel_while_it_decodes_ends_the_run_and_loses_no_section(tiny, positive, film, output, monkeypatch):
    calls = []
    decode = VaeDecoder._call

    def cancelled_once(self, *given):
        calls.append(given)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return decode(self, *given)

    monkeypatch.setattr(VaeDecoder, "_call", cancelled_once)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(tiny, positive, film("forward"), vae=tiny.vae, early_look="file")
    assert len(pixels(files(output)[0])) == 2 * SECTION + 1
    assert not comfy.model_management.processing_interrupted()


def test_without_a_finished_section_there_is_no_file(tiny, positive, film, output, monkeypatch):
    cancel_at(monkeypatch, 1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(tiny, positive, film("forward"), vae=tiny.vae, early_look="file")
    assert not files(output)


@pytest.mark.parametrize("failure", [RuntimeError("broken"), ValueError("broken"), OSError("broken")])
@pytest.mark.parametrize("place", ["decode", "write"])
def test_its_failure_is_said_once_and_sampling_goes_on(
    tiny, positive, film, output, monkeypatch, caplog, place, failure
):
    plain, _ = sample(tiny, positive, film("backward", 4))
    owner, name = {"decode": (VaeDecoder, "__call__"), "write": (GrowingVideo, "_save")}[place]
    working, calls = getattr(owner, name), []

    def fails_later(*given):
        calls.append(given)
        if len(calls) > 2:
            raise failure
        return working(*given)

    monkeypatch.setattr(owner, name, fails_later)
    with caplog.at_level(logging.WARNING):
        history, _ = sample(tiny, positive, film("backward", 4), vae=tiny.vae, early_look="file")
    assert all(map(torch.equal, plain.sections, history.sections))
    assert len(calls) == 3
    (record,) = (record for record in caplog.records if "early look" in record.message)
    assert record.message == "FramePack: the early look has ended (broken); sampling goes on without it."
    assert len(pixels(files(output)[0])) in (SECTION - 3, 2 * SECTION - 3)


def test_every_film_of_a_batch_has_its_file_and_none_is_overwritten(tiny, positive, film, output):
    for count in (2, 4):
        sample(tiny, positive, film("forward", 2, 2), vae=tiny.vae, early_look="file", filename_prefix="mine")
        assert len(files(output)) == count
    first, second = (pixels(path) for path in files(output)[:2])
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_going_on_with_a_film_writes_all_of_it(tiny, positive, film, output, fine):
    begun, _ = sample(tiny, positive, film("backward"), max_sections=2)
    history, _ = sample(tiny, positive, begun, vae=tiny.vae, early_look="file")
    assert_is_the_film(files(output)[0], tiny, history)


def test_the_node_shows_the_file_and_the_file_the_workflow(tiny, positive, film, output, monkeypatch):
    class Hidden:
        prompt, extra_pnginfo = {"1": {"class_type": "A"}}, {"workflow": {"nodes": [1]}}

    monkeypatch.setattr(FramePackSampler, "hidden", Hidden, raising=False)
    widgets = {"steps": 1, "cfg": 1.0, "guidance_rescale": 0.0, "shift": 0.0, "max_sections": 1}
    made = FramePackSampler.execute(
        tiny.model, positive, film("forward", 2), vae=tiny.vae, early_look="file", **widgets
    )
    (shown,) = made.ui.as_dict()["images"]
    path = Path(shown["subfolder"]) / shown["filename"]
    assert (shown["type"], path.as_posix()) == ("output", "framepack/early_look_00001_.mp4")
    with av.open(str(output / path)) as container:
        assert json.loads(container.metadata["workflow"]) == {"nodes": [1]}
        assert json.loads(container.metadata["prompt"]) == {"1": {"class_type": "A"}}
    assert FramePackSampler.execute(tiny.model, positive, film("forward", 2), **widgets).ui is None


class StripPreviewer(latent_preview.LatentPreviewer):
    def decode_latent_to_preview(self, _x0):
        return Image.new("RGB", (30, 10), (255, 0, 0))


@pytest.mark.parametrize("previews", [True, False])
@pytest.mark.parametrize("look", ["preview", "file"])
def test_pictures_of_a_section_are_shown_until_the_next(tiny, positive, film, output, monkeypatch, previews, look):
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *given, **_: shown.append(given[:3]))
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: StripPreviewer() if previews else None)
    sample(tiny, positive, film("backward", 2), vae=tiny.vae, early_look=look)
    shown = [(value / total, preview[1]) for value, total, preview in shown if preview]
    images = [image for _, image in shown]
    looks = [2, 5] if previews else [0, 1]
    first, second = (images[place] for place in looks)
    assert first.size == second.size == (3 * 64, 64)
    assert first.tobytes() != second.tobytes()
    if not previews:
        assert [share for share, _ in shown] == [1 / 2, 1]
        return
    assert [share for share, _ in shown] == [1 / 4, 2 / 4, 1 / 2, 3 / 4, 4 / 4, 1]
    assert images[0].size == (30, 10)
    assert all(image.size == (3 * 64, 64 + 64) for image in images[3:5])
    assert images[3].crop((0, 0, 3 * 64, 64)).tobytes() == first.tobytes()
    assert images[3].getpixel((100, 100)) == (255, 0, 0)


def test_preview_alone_decodes_six_latents_of_a_section(tiny, positive, film, monkeypatch):
    decoded, call = [], VaeDecoder.__call__

    def count(self, latents):
        decoded.append(latents.shape[2])
        return call(self, latents)

    monkeypatch.setattr(VaeDecoder, "__call__", count)
    sample(tiny, positive, film("forward", 2), vae=tiny.vae, early_look="preview")
    assert sum(decoded) == 2 * 6


def test_off_costs_nothing(tiny, positive, film, monkeypatch):
    monkeypatch.setattr(EarlyLook, "__init__", None)
    monkeypatch.setattr(early_look, "VaeDecoder", None)
    before = threading.active_count()
    sample(tiny, positive, film("forward", 2), vae=tiny.vae)
    assert threading.active_count() == before


def test_the_writer_is_gone_afterwards(tiny, positive, film, output):
    sample(tiny, positive, film("forward", 2), vae=tiny.vae, early_look="file")
    assert not any("framepack" in thread.name for thread in threading.enumerate())


def test_sections_are_joined_behind_the_sampling(tiny, positive, film, output, monkeypatch):
    threads, join = [], GrowingFilm.join
    monkeypatch.setattr(GrowingFilm, "join", lambda *given: threads.append(threading.current_thread()) or join(*given))
    sample(tiny, positive, film("backward"), vae=tiny.vae, early_look="file")
    assert len(threads) == 3
    assert threading.main_thread() not in threads


def test_the_wait_for_the_file_at_the_end_is_not_the_sampling_s(tiny, positive, film, tmp_path, monkeypatch):
    look = EarlyLook(tiny.vae, [GrowingVideo(tmp_path / "film.mp4")])
    grow = GrowingVideo.grow
    monkeypatch.setattr(GrowingVideo, "grow", lambda *pieces: (time.sleep(0.5), grow(*pieces)))
    history = film("backward")
    newest, _ = sample(tiny, positive, history, max_sections=1)
    with look.during(history, 1) as on_section:
        on_section(newest)
    assert look.ending > 0.4
    assert len(pixels(tmp_path / "film.mp4")) > 1


def test_taehv_serves(tiny, positive, film, output):
    """Its file is told from Wan's by its dtype."""
    generator = torch.Generator().manual_seed(0)
    shapes = {key: value.shape for key, value in TAEHV(16).state_dict().items()}
    taehv = comfy.sd.VAE(
        sd={key: (0.05 * torch.randn(shape, generator=generator)).half() for key, shape in shapes.items()}
    )
    sample(tiny, positive, film("forward", 2), vae=taehv, early_look="file")
    assert len(pixels(files(output)[0])) == 2 * SECTION + 1


def test_bad_input_is_refused_before_sampling(tiny, positive, film, output, tmp_path, monkeypatch):
    calls = []
    hook = tiny.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="early_look is 'file', which needs a VAE; connect one, or set early_look"):
        sample(tiny, positive, film("forward"), early_look="file")
    with pytest.raises(ValueError, match="early_look is 'always', which is not in its list: off, preview, file"):
        sample(tiny, positive, film("forward"), vae=tiny.vae, early_look="always")
    monkeypatch.setattr(tiny.vae, "latent_channels", 4)
    with pytest.raises(ValueError, match="This VAE .* has 4 channels"):
        sample(tiny, positive, film("forward"), vae=tiny.vae, early_look="preview")
    monkeypatch.undo()
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "file" / "output"))
    message = "ComfyUI's output folder .* cannot be written .*--output-directory"
    with pytest.raises(ValueError, match=message):
        sample(tiny, positive, film("forward"), vae=tiny.vae, early_look="file")
    assert "cannot be written" in FramePackSampler.validate_inputs("file")
    assert FramePackSampler.validate_inputs("preview") is True
    hook.remove()
    assert not calls
