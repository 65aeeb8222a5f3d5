"""The host's VAE object through our own decoder, on the CPU, where it is not the default."""

import logging

import comfy.ldm.modules.diffusionmodules.model as host_model
import comfy.model_management
import comfy.utils
import pytest
import torch
from framepack_pack.framepack_core.affine_norm import use_affine_norms
from framepack_pack.framepack_core.comfy_host import plan_request, vae_decoder
from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_vae
from framepack_pack.framepack_core.comfy_host.film_decoding import WHOLE, DecodeOptions, decode_frames, stream_frames
from framepack_pack.framepack_core.comfy_host.vae_decoder import Rung, VaeDecoder, ladder
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.framepack_core.vae import layers
from framepack_pack.framepack_core.vae.weights import build_decoder

FRAMES = 2 * 12 + 1  # of two sections with window 3
PIECEWISE_HOST = hasattr(host_model, "CarriedConv3d")  # ComfyUI 0.33.0: norms see two latents at a time, as ours do


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    monkeypatch.setattr(vae_decoder, "streams_on", lambda _device, _dtype: True)


@pytest.fixture
def film(new_film):
    def make(count=2, batch=1):
        start = torch.randn(batch, 16, 1, 2, 2, generator=torch.manual_seed(3))
        history = new_film("forward", count, start_latent=start)
        return generate(history, lambda section, packed, noise: noise)

    return make


@pytest.fixture(scope="module")
def affine(tiny_folder):
    vae = load_vae(tiny_folder / "vae.safetensors")
    use_affine_norms(vae.first_stage_model)
    return vae


@pytest.fixture
def failing(monkeypatch):
    """failing(k, k + 1): our decoder runs out of memory at these convolutions, counted from 1."""
    convolve = layers.convolve

    def make(*calls):
        count = [0]

        def counted(*arguments, **others):
            count[0] += 1
            if count[0] in calls:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory (the test's)")
            return convolve(*arguments, **others)

        monkeypatch.setattr(layers, "convolve", counted)
        return count

    return make


def pieces_of(vae, history, **options):
    return [piece.clone() for piece in stream_frames(vae, history, options=DecodeOptions(WHOLE, **options)).pieces]


def test_norms_without_statistics_give_the_hosts_frames(affine, film):
    history = film()
    expected = affine.decode(film_latents(history))
    torch.testing.assert_close(torch.cat(pieces_of(affine, history), 1), expected, atol=2e-6, rtol=1e-5)
    assert expected.shape == (1, FRAMES, 16, 16, 3)


@pytest.mark.skipif(not PIECEWISE_HOST, reason="this host's norms see the whole film")
def test_the_hosts_pieces_give_the_hosts_frames(tiny, film):
    history = film()
    expected = tiny.vae.decode(film_latents(history))
    torch.testing.assert_close(torch.cat(pieces_of(tiny.vae, history), 1), expected, atol=5e-6, rtol=1e-5)


def test_every_section_is_a_film_of_its_own(affine, film, monkeypatch):
    history = film(3)
    ours = decode_frames(affine, history)
    monkeypatch.setattr(vae_decoder, "streams_on", lambda _device, _dtype: False)
    torch.testing.assert_close(ours, decode_frames(affine, history), atol=2e-6, rtol=1e-5)


def test_a_chunk_that_is_asked_for_is_one(affine, film, monkeypatch):
    """Chunks share latents and are faded as through the host's decoder, for 5 is what the original does."""
    history = film(3)
    ours = decode_frames(affine, history, options=DecodeOptions(WHOLE, 5))
    assert float((ours - decode_frames(affine, history, options=DecodeOptions(WHOLE))).abs().max()) > 0.01
    monkeypatch.setattr(vae_decoder, "streams_on", lambda _device, _dtype: False)
    expected = decode_frames(affine, history, options=DecodeOptions(WHOLE, 5))
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)


def test_films_of_a_batch_are_decoded_alone(tiny, film):
    latents = film_latents(film(batch=2))
    together = decode_frames(tiny.vae, None, latents, DecodeOptions(WHOLE))
    for number in range(2):
        alone = decode_frames(tiny.vae, None, latents[number : number + 1], DecodeOptions(WHOLE))
        torch.testing.assert_close(together[number * FRAMES :][:FRAMES], alone)


def test_frames_come_while_later_latents_wait(tiny, film, failing):
    calls = failing()
    stream = stream_frames(tiny.vae, film(), options=DecodeOptions(WHOLE))
    assert calls == [0]
    assert next(stream.pieces).shape == (1, 5, 16, 16, 3)
    begun = calls[0]
    assert [piece.shape[1] for piece in stream.pieces] == [8, 8, 4]
    assert calls[0] > 1.5 * begun


def test_running_out_of_memory_keeps_the_frames_and_their_number(affine, film, failing, caplog):
    history = film()
    calls = failing()
    pieces, ends = [], []  # and the convolution that each piece ends with
    decoder = build_decoder(affine.first_stage_model, torch.device("cpu"), torch.float32)
    for frames in decoder.stream(film_latents(history)):
        pieces.append(affine.process_output(frames))
        ends.append(calls[0])
    expected = torch.cat(pieces)
    for failure in range(1, ends[-1] + 1, 7):
        caplog.clear()
        failing(failure)
        got = torch.cat(pieces_of(affine, history), 1)[0]
        assert got.shape == (FRAMES, 16, 16, 3)
        assert "decoding each latent once, 2 at a time; going on with each latent once, 1 at a time" in caplog.text
        made = sum(len(frames) for frames, end in zip(pieces, ends, strict=True) if end < failure)
        assert torch.equal(got[:made], expected[:made]), "what was decoded before is kept"
        assert float((got - expected).abs().mean()) < 0.01, "the latents before a new start are enough"


def test_every_rung_down_to_the_cpu_gives_all_frames(tiny, film, failing, caplog):
    own = [Rung(7, piece=2), Rung(7, piece=1)]
    assert ladder(7, 2, 18, streamed=True) == [*own, Rung(5, 16), Rung(5, 0, True)]
    failing(40, 41, 42)
    frames = torch.cat(pieces_of(tiny.vae, film()), 1)
    assert frames.shape == (1, FRAMES, 16, 16, 3)
    assert "going on with 5 latents at a time, on the CPU" in caplog.text


@pytest.mark.parametrize("rung", range(3))
def test_as_much_is_on_the_device_as_memory_allows(tiny, monkeypatch, rung):
    shape = (1, 16, 2, 120, 120)  # few latents, or the middle needs the most
    rungs = VaeDecoder(tiny.vae, shape).rungs
    needs = [VaeDecoder(tiny.vae, shape)._need(one) for one in rungs[:2]]
    assert needs == sorted(needs, reverse=True)
    free = needs[rung] if rung < 2 else 0.9 * needs[-1]
    free = free + comfy.model_management.minimum_inference_memory()

    def get_free_memory(_device, torch_free_too=False):
        return (free, 0) if torch_free_too else free

    monkeypatch.setattr(comfy.model_management, "get_free_memory", get_free_memory)
    decoder = VaeDecoder(tiny.vae, shape)
    assert decoder.streams == (rung < 2)
    assert decoder.rungs[0] == rungs[rung] if rung < 2 else decoder.rungs[0].tile


def test_a_vae_that_was_changed_is_left_to_the_host(tiny, film, caplog):
    def decoder():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            return VaeDecoder(tiny.vae, (1, 16, 7, 2, 2))

    model = tiny.vae.first_stage_model
    assert decoder().streams
    with model.decoder.register_forward_hook(lambda *_: None):
        assert not decoder().streams
    assert "through the host's decoder, because of this VAE: decoder has hooks" in caplog.text
    tiny.vae.patcher.patches["decoder.conv_in.conv.weight"] = [()]
    try:
        assert not decoder().streams
    finally:
        tiny.vae.patcher.patches.clear()
    model.decode = lambda latents: latents
    try:
        assert not decoder().streams
    finally:
        del model.decode
    assert decoder().streams
    assert not VaeDecoder(tiny.vae, (1, 16, 7, 2, 2), tile=8).streams


def test_beside_other_models_no_weights_stay_on_the_device(tiny, film):
    latents = film_latents(film())
    decoder = VaeDecoder(tiny.vae, tuple(latents.shape), beside=True)
    assert decoder.streams
    for _ in range(2):
        assert decoder(latents).shape == (1, FRAMES, 16, 16, 3)
        assert decoder._own._decoder is None


def test_interrupt_ends_between_two_pieces(tiny, film):
    stream = stream_frames(tiny.vae, film(), options=DecodeOptions(WHOLE))
    next(stream.pieces)
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            list(stream.pieces)
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_progress_counts_the_frames(tiny, film, monkeypatch):
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    pieces_of(tiny.vae, film())
    assert (shown[0], shown[-1]) == ((5, FRAMES), (FRAMES, FRAMES))  # the newest host leaves some out in between


def test_nan_made_by_the_vae_is_said(tiny, film):
    bias = tiny.vae.first_stage_model.decoder.conv_out.conv.bias
    before = bias.data.clone()
    bias.data.fill_(torch.nan)
    try:
        with pytest.raises(ValueError, match="The VAE made NaN of finite latents in .*; start ComfyUI with"):
            pieces_of(tiny.vae, film())
    finally:
        bias.data.copy_(before)


def test_half_precision_is_near_single(tiny, film, monkeypatch):
    history = film()
    expected = decode_frames(tiny.vae, history)
    monkeypatch.setattr(tiny.vae, "vae_dtype", torch.bfloat16)
    frames = decode_frames(tiny.vae, history)
    assert frames.dtype == torch.float32
    assert 0 < float((frames - expected).abs().mean()) < 0.02


def test_no_state_is_left_on_the_vae(tiny, film):
    before = set(vars(tiny.vae))
    decode_frames(tiny.vae, film())
    assert set(vars(tiny.vae)) == before


def test_the_plan_counts_on_it(tiny, film, monkeypatch):
    history = film()
    ours = plan_request._decode_bytes(tiny.vae, history)
    assert ours == VaeDecoder(tiny.vae, (1, 16, 7, 2, 2))._own.need(2, 2, 2, 7)
    monkeypatch.setattr(vae_decoder, "streams_on", lambda _device, _dtype: False)
    assert plan_request._decode_bytes(tiny.vae, history) != ours
