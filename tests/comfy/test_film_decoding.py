"""Frames through the host's VAE: modes, chunks, a lack of memory, bad latents."""

import gc
import logging

import comfy.model_management
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.film_decoding import (
    SECTIONS,
    WHOLE,
    DecodeOptions,
    decode_frames,
    stream_frames,
)
from framepack_pack.framepack_core.comfy_host.vae_decoder import Rung, VaeDecoder, ladder
from framepack_pack.framepack_core.decoding import decode_film, plan_sections
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.nodes.decode import FramePackDecode

FRAMES = 2 * 12 + 1  # of two sections with window 3


@pytest.fixture
def film(new_film):
    def make(kind="backward", count=2, **changes):
        small = {"start_latent": torch.randn(changes.get("batch", 1), 16, 1, 2, 2, generator=torch.manual_seed(3))}
        return generate(new_film(kind, count, **{**small, **changes}), lambda section, packed, noise: noise)

    return make


@pytest.fixture
def failing(tiny):
    """failing(k, k + 1): the VAE's decoder runs out of memory at these calls, counted from 1."""
    handles = []

    def make(*calls):
        count = [0]

        def raise_at(_module, _arguments):
            count[0] += 1
            if count[0] in calls:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory (the test's)")

        handles.append(tiny.vae.first_stage_model.decoder.register_forward_pre_hook(raise_at))
        return count

    yield make
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", ["backward", "forward"])
def test_decode_gives_the_frames_of_all_windows(tiny, film, kind):
    history = film(kind)
    images = FramePackDecode.execute(tiny.vae, history).args[0]
    assert images.shape == (FRAMES, 16, 16, 3)
    assert images.device.type == "cpu"
    pieces = decode_film(film_latents(history), plan_sections(history), tiny.vae.decode)
    torch.testing.assert_close(images, torch.cat(list(pieces), dim=1)[0])


@pytest.mark.parametrize("options", [DecodeOptions(), DecodeOptions(WHOLE)])
def test_one_section_decodes_as_the_hosts_node_does(tiny, film, options):
    history = film(count=1)
    frames = decode_frames(tiny.vae, history, options=options)
    torch.testing.assert_close(frames, tiny.vae.decode(film_latents(history))[0])


def test_films_of_a_batch_come_one_after_the_other(tiny, film):
    both = decode_frames(tiny.vae, film(batch=2))
    history = film(batch=2)
    latents = film_latents(history)
    for number in range(2):
        alone = decode_frames(tiny.vae, None, latents[number : number + 1], DecodeOptions(WHOLE))
        together = decode_frames(tiny.vae, None, latents, DecodeOptions(WHOLE))
        torch.testing.assert_close(together[number * FRAMES :][:FRAMES], alone)
    assert both.shape[0] == 2 * FRAMES


def test_latents_may_take_the_place_of_the_historys(tiny, film):
    history = film()
    latents = {"samples": film_latents(history)}
    expected = FramePackDecode.execute(tiny.vae, history).args[0]
    assert torch.equal(FramePackDecode.execute(tiny.vae, history, latents).args[0], expected)
    changed = {"samples": -film_latents(history)}
    assert not torch.equal(FramePackDecode.execute(tiny.vae, history, changed).args[0], expected)
    alone = FramePackDecode.execute(tiny.vae, None, latents, WHOLE).args[0]
    assert torch.equal(alone, FramePackDecode.execute(tiny.vae, history, None, WHOLE).args[0])


@pytest.mark.parametrize(
    ("mode", "chunk", "tile"), [(SECTIONS, 3, 0), (SECTIONS, 5, 64), (WHOLE, 0, 0), (WHOLE, 6, 0), (WHOLE, 100, 64)]
)
def test_every_mode_gives_all_frames(tiny, film, mode, chunk, tile):
    frames = decode_frames(tiny.vae, film("forward"), options=DecodeOptions(mode, chunk, tile))
    assert frames.shape == (FRAMES, 16, 16, 3)
    assert bool((frames >= 0).all() and (frames <= 1).all())


def test_small_pictures_are_decoded_in_tiles(tiny, film):
    """Tiles see less of the picture, so the frames differ from those of whole pictures, but not in their number."""
    history = film(start_latent=torch.randn(1, 16, 1, 12, 2))
    whole = decode_frames(tiny.vae, history)
    tiled = decode_frames(tiny.vae, history, options=DecodeOptions(tile=64))
    assert tiled.shape == whole.shape == (FRAMES, 96, 16, 3)
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize(
    ("mode", "kind", "chunk", "less"),
    [(SECTIONS, "backward", 7, 4), (SECTIONS, "forward", 6, 3), (WHOLE, "forward", 5, 3)],
)
def test_running_out_of_memory_keeps_the_frames_and_their_number(tiny, film, failing, mode, kind, chunk, less, caplog):
    history, options = film(kind), DecodeOptions(mode, chunk)
    whole = decode_frames(tiny.vae, history, options=options)
    calls = failing()
    stream = stream_frames(tiny.vae, history, options=options)
    pieces = list(stream.pieces)
    total = calls[0]
    assert total == 2
    for failure in range(1, total + 1):
        caplog.clear()
        failing(failure)
        frames = torch.cat(list(stream_frames(tiny.vae, history, options=options).pieces), dim=1)
        assert frames.shape == (1, FRAMES, 16, 16, 3)
        assert f"out of memory decoding {chunk} latents at a time; going on with {less} latents at" in caplog.text
        kept = sum(piece.shape[1] for piece in pieces[: 2 * failure - 3]) if failure > 1 else 0
        assert torch.equal(frames[0, :kept], whole[:kept]), "what was decoded before is kept"


def test_every_rung_down_to_the_cpu_gives_all_frames(tiny, film, failing, caplog):
    history = film(start_latent=torch.randn(1, 16, 1, 2, 18))
    options = DecodeOptions(chunk=7)
    rungs = ladder(7, 2, 18)
    assert rungs == [Rung(7), Rung(4), Rung(3), Rung(5, 16), Rung(5, 0, True)]
    for failures in range(1, len(rungs)):
        caplog.clear()
        failing(*range(1, failures + 1))
        assert decode_frames(tiny.vae, history, options=options).shape == (FRAMES, 16, 144, 3)
        assert f"going on with {rungs[failures]}" in caplog.text
        assert len([line for line in caplog.records if line.levelno == logging.WARNING]) == failures
    failing(*range(1, len(rungs) + 1))
    with pytest.raises(RuntimeError, match="Memory ran out decoding 5 latents at a time, on the CPU; close"):
        decode_frames(tiny.vae, history, options=options)


def test_cpu_rung_gives_the_same_frames_and_leaves_the_vae_as_it_was(tiny, film):
    latents = film_latents(film(count=1))
    device, patcher = tiny.vae.device, tiny.vae.patcher
    decoder = VaeDecoder(tiny.vae, tuple(latents.shape), chunk=4)
    expected = decoder(latents)
    decoder.rungs = [Rung(4, 0, True)]
    assert torch.equal(decoder(latents), expected)
    assert (tiny.vae.device, tiny.vae.patcher) == (device, patcher)
    torch.testing.assert_close(tiny.vae.decode(latents), expected)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny, film):
    def raise_error(_module, _arguments):
        raise RuntimeError("something else")

    decoder = tiny.vae.first_stage_model.decoder
    with decoder.register_forward_pre_hook(raise_error), pytest.raises(RuntimeError, match="something else"):
        decode_frames(tiny.vae, film())


@pytest.mark.parametrize(("latents", "expected"), [(100, 18), (12, 9), (7, 5), (4, 3), (0.5, 5)])
def test_chunks_are_as_large_as_memory_allows(tiny, monkeypatch, latents, expected):
    shape = (1, 16, 18, 48, 80)
    one = tiny.vae.memory_used_decode((1, 16, 1, 48, 80), tiny.vae.vae_dtype)
    free = 1.1 * one * latents + comfy.model_management.minimum_inference_memory()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: free)
    decoder = VaeDecoder(tiny.vae, shape)
    assert decoder.chunk == expected
    assert bool(decoder.rungs[0].tile) == (latents < 3)


def test_beside_other_models_only_the_least_is_freed(tiny, monkeypatch):
    """Else the transformer would be moved out and in again for every early look."""
    asked, load = [], comfy.model_management.load_models_gpu

    def note(models, memory_required=0, **others):
        asked.append(memory_required)
        load(models, memory_required=memory_required, **others)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", note)
    free = comfy.model_management.minimum_inference_memory()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: free)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: 2**50)
    whole, beside = VaeDecoder(tiny.vae, (1, 16, 5, 48, 80)), VaeDecoder(tiny.vae, (1, 16, 5, 48, 80), beside=True)
    assert asked[0] == whole._need(Rung(5))
    assert asked[1] == beside._need(Rung(5, 16)) < asked[0] / 10
    assert whole.rungs == beside.rungs


def test_interrupt_ends_between_two_calls_of_the_vae(tiny, film):
    stream = stream_frames(tiny.vae, film("forward"))
    next(stream.pieces)
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            list(stream.pieces)
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_progress_counts_the_calls(tiny, film, monkeypatch):
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    decode_frames(tiny.vae, film())
    assert shown == [(1, 2), (2, 2)]


def test_frames_are_made_while_they_are_taken(tiny, film, failing):
    calls = failing()
    stream = stream_frames(tiny.vae, film("forward"))
    assert calls == [0]
    next(stream.pieces)
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single(tiny, film, dtype, monkeypatch):
    history = film()
    expected = decode_frames(tiny.vae, history)
    model = tiny.vae.first_stage_model
    exact = {key: tensor.clone() for key, tensor in model.state_dict().items()}  # other tests use this VAE, too
    monkeypatch.setattr(tiny.vae, "vae_dtype", dtype)
    model.to(dtype)
    try:
        frames = decode_frames(tiny.vae, history)
    finally:
        model.to(torch.float32).load_state_dict(exact)
    assert frames.dtype == torch.float32
    assert float((frames - expected).abs().mean()) < 0.02


def test_nan_made_by_the_vae_is_said(tiny, film):
    decoder, nothing = tiny.vae.first_stage_model.decoder, torch.full((1, 3, 13, 16, 16), torch.nan)
    message = "The VAE made NaN of finite latents in .*; start ComfyUI with"
    with decoder.register_forward_hook(lambda *_: nothing), pytest.raises(ValueError, match=message):
        decode_frames(tiny.vae, film(count=1))


def test_bad_latents_are_refused_before_the_vae_runs(tiny, film, failing):
    calls = failing()
    history = film()
    broken = film_latents(history).clone()
    broken[0, 0, 5] = torch.nan
    for arguments, message in (
        ((history, {"samples": torch.zeros(1, 16, 7, 2, 4)}), r"The latent is \(1, 16, 7, 2, 4\), the film of this"),
        ((history, {"samples": broken}), r"The latents of section 1 \(0.4 s to 0.8 s, made as 1 of 2\) hold NaN"),
        ((None, {"samples": broken}, WHOLE), "The latents of frame 5 hold NaN"),
        ((None, {"samples": torch.zeros(1, 4, 7, 2, 2)}, WHOLE), "The latent is .1, 4, 7, 2, 2.; FramePack's films"),
        ((None, {"samples": film_latents(history)}), "section by section needs a history"),
        ((None,), "nothing to decode; connect a history"),
        ((history, None, "sideways"), "mode is 'sideways'"),
        ((history, None, SECTIONS, 2), "chunk is 2 latents"),
        ((history, None, SECTIONS, 0, 8), "tile_size is 8 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            FramePackDecode.execute(tiny.vae, *arguments)
    assert calls == [0]


def test_empty_films_are_refused(tiny, new_film):
    with pytest.raises(ValueError, match="no section yet"):
        FramePackDecode.execute(tiny.vae, new_film())


def test_no_state_is_left_on_the_vae(tiny, film):
    before = set(vars(tiny.vae))
    decode_frames(tiny.vae, film())
    gc.collect()
    assert set(vars(tiny.vae)) == before
