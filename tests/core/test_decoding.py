"""Windows, chunks and cross-fades against the original's rules, computed here the original's way."""

import gc
import weakref
from collections import deque

import pytest
import torch
from framepack_pack.framepack_core.decoding import (
    CHUNKS,
    SECTIONS,
    check_finite,
    checked_latents,
    chunk_spans,
    collect,
    decode_film,
    fade,
    plan_sections,
    plan_whole,
    section_windows,
)
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import append_section, film_latents, new_history
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward

PLANS = {"backward": plan_backward, "forward": plan_forward}


def random_film(kind, count, window=9, has_start=True, sections=None):
    start = torch.randn(1, 16, 1, 2, 2) if has_start else None
    history = new_history(PLANS[kind](count, window), 0, 16, 16, start)
    return generate(history, lambda section, packed, noise: noise, sections)


def fake_decode(latents):
    """Frames that depend on their place in the window, so that windows and order show: [B, 4T-3, 1, 1, 3]."""
    sums = latents.mean(dim=(3, 4))[:, :3].movedim(1, 2)  # [B, T, 3]
    frames = sums.repeat_interleave(4, dim=1)[:, 3:] + torch.arange(4 * latents.shape[2] - 3).view(1, -1, 1) / 100
    return frames.view(*frames.shape[:2], 1, 1, 3)


def decode_sections(history, decode=fake_decode, chunk=None):
    return torch.cat(list(decode_film(film_latents(history), plan_sections(history, chunk), decode)), dim=1)


def soft_append(history, current, overlap):
    """FP utils.py soft_append_bcthw by its rule, on [B, F, ...]."""
    weights = torch.linspace(1, 0, overlap).view(1, -1, 1, 1, 1)
    blended = weights * history[:, -overlap:] + (1 - weights) * current[:, :overlap]
    return torch.cat([history[:, :-overlap], blended, current[:, overlap:]], dim=1)


def original_chunks(latents, decode=fake_decode):
    """Temporal tiles of diffusers' AutoencoderKLHunyuanVideo, which the original decodes with."""
    rows = []
    for first in range(0, latents.shape[2], 3):
        tile = decode(latents[:, :, first : first + 5])
        rows.append(tile[:, 1:] if first else tile)
    result = []
    for number, tile in enumerate(rows):
        if number:
            before = rows[number - 1]
            extent = min(before.shape[1], tile.shape[1], 4)
            tile = rows[number] = tile.clone()
            for x in range(extent):
                tile[:, x] = before[:, -extent + x] * (1 - x / extent) + tile[:, x] * (x / extent)
        result.append(tile[:, : 12 if number else 13])
    return torch.cat(result, dim=1)[:, : 4 * latents.shape[2] - 3]


def original_way(history, decode=fake_decode):
    """Decode in the order of generation, as FP demo_gradio.py and demo_gradio_f1.py do."""
    latents, window, count = film_latents(history), history.plan.window, len(history.sections)
    has_start = int(history.start_latent is not None)
    overlap = 4 * window - 3
    frames = None
    for number in range(count):
        if history.plan.neighbour == 1:
            is_last = number == count - 1
            made = latents[:, :, (0 if is_last else has_start + (count - 1 - number) * window) :]
            part = made[:, :, : 2 * window + (has_start if is_last else 0)]
            frames = decode(made) if frames is None else soft_append(decode(part), frames, overlap)
        else:
            made = latents[:, :, : has_start + (number + 1) * window]
            part = made[:, :, -2 * window :]
            frames = decode(made) if frames is None else soft_append(frames, decode(part), overlap)
    return frames


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("has_start", [True, False])
def test_frames_equal_the_original_order(kind, count, window, has_start):
    history = random_film(kind, count, window, has_start)
    frames, expected = decode_sections(history), original_way(history)
    assert frames.shape == expected.shape
    assert frames.shape[1] == 4 * window * count + (1 if has_start else -3)
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("count", range(1, 13))
def test_every_chunk_size_gives_36n_plus_1_frames(kind, count):
    history = random_film(kind, count)
    latents = film_latents(history)
    for chunk in (*range(3, 20), 9 * count, 9 * count + 1):
        for plan in (plan_sections(history, chunk), plan_whole(latents.shape[2], chunk)):
            sizes = []

            def decode(part, sizes=sizes):
                sizes.append(part.shape[2])
                return fake_decode(part)

            assert collect(decode_film(latents, plan, decode), 36 * count + 1).shape[1] == 36 * count + 1
            assert max(sizes) <= chunk
            assert len(sizes) == plan.calls


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("has_start", [True, False])
def test_chunks_of_five_equal_the_originals_tiles(kind, count, has_start):
    history = random_film(kind, count, has_start=has_start)
    assert torch.equal(decode_sections(history, chunk=5), original_way(history, original_chunks))


def test_chunks_that_two_windows_share_are_decoded_once():
    history = random_film("forward", 4)
    calls = []
    decode_sections(history, lambda part: calls.append(part.shape[2]) or fake_decode(part), chunk=5)
    # 10 latents in 3 tiles, then three windows of 18 in 6 each; two tiles of a window are the next one's too
    assert len(calls) == 3 + 6 + 2 * (6 - 2) == plan_sections(history, 5).calls


def test_frames_of_the_middle_are_the_same_in_chunks_and_whole():
    """A decoder that looks at single latents only cannot tell where a chunk begins."""
    latents = torch.randn(1, 16, 19, 2, 2)

    def decode(part):
        return part[:, :1].movedim(1, -1).repeat_interleave(4, dim=1)[:, 3:]

    for chunk in (3, 5, 7):
        pieces = decode_film(latents, plan_whole(19, chunk), decode)
        torch.testing.assert_close(collect(pieces, 73), decode(latents))


@pytest.mark.parametrize("kind", PLANS)
def test_unfinished_films_decode(kind):
    history = random_film(kind, 3, sections=2)
    assert decode_sections(history).shape[1] == (73 if kind == "forward" else 69)


def test_windows_are_bounded():
    longest = {kind: max(map(len, section_windows(random_film(kind, 12)))) for kind in PLANS}
    assert longest == {"backward": 19, "forward": 18}


def test_cross_fade_of_zeros_and_ones():
    mixed = fade(torch.zeros(1, 33, 1, 1, 3), torch.ones(1, 33, 1, 1, 3), SECTIONS.weights(33))[0, :, 0, 0, 0]
    torch.testing.assert_close(mixed, torch.arange(33) / 32)


def test_chunks_fade_over_quarters():
    assert CHUNKS.weights(4).tolist() == [1, 0.75, 0.5, 0.25]


def test_fade_of_equal_frames_is_themselves():
    frames = torch.rand(1, 33, 2, 2, 3)
    torch.testing.assert_close(fade(frames.clone(), frames, SECTIONS.weights(33)), frames)


def test_only_the_next_fade_stays_in_memory():
    """While a window is decoded, 4 w - 3 frames of the one before are there, and the window itself is not."""
    alive = []

    def decode(part):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        frames = fake_decode(part)
        made.append(weakref.ref(frames.untyped_storage()))
        return frames

    made = []
    history = random_film("forward", 4)
    deque(decode_film(film_latents(history), plan_sections(history), decode), maxlen=0)
    assert alive == [0, 0, 0, 0]


def test_two_latents_too_few_for_a_chunk_are_refused():
    with pytest.raises(ValueError, match="chunk is 2 latents"):
        chunk_spans(range(9), 2)


def test_a_piece_that_is_all_is_not_copied():
    piece = torch.zeros(1, 33, 1, 1, 3)
    assert collect(iter([piece]), 33) is piece


def test_a_decoder_that_gives_other_frames_is_named():
    with pytest.raises(RuntimeError, match="gave 4 frames where 33 belong"):
        collect(iter([torch.zeros(1, 4, 1, 1, 3)]), 33)


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="no section yet"):
        section_windows(new_history(plan_backward(1, 9), 0, 16, 16))


@pytest.mark.parametrize("shape", [(1, 16, 19, 2, 4), (1, 4, 19, 2, 2), (1, 16, 18, 2, 2), (2, 16, 19, 2, 2)])
def test_latents_of_another_film_are_refused(shape):
    history = random_film("backward", 2)
    assert checked_latents(history, torch.ones(1, 16, 19, 2, 2)).mean() == 1
    with pytest.raises(ValueError, match=r"The latent is .*, the film of this history \(1, 16, 19, 2, 2\)"):
        checked_latents(history, torch.zeros(shape))


@pytest.mark.parametrize(("frame", "owner"), [(0, "the start image"), (9, "section 0 .0.0"), (10, "section 1 .1.2")])
def test_nan_is_refused_with_its_section(frame, owner):
    latents = torch.zeros(1, 16, 19, 2, 2)
    latents[0, 3, frame, 1, 1] = float("nan")
    with pytest.raises(ValueError, match=f"The latents of {owner}"):
        checked_latents(random_film("backward", 2), latents)
    with pytest.raises(ValueError, match=f"frame {frame} hold NaN"):
        check_finite(latents)


def test_nan_of_an_unfinished_backward_film_is_refused_with_its_section():
    history = append_section(random_film("backward", 3, sections=1), torch.zeros(1, 16, 9, 2, 2))
    latents = film_latents(history)
    latents[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="section 1 .1.2 s to 2.4 s, made as 2 of 3"):
        checked_latents(history, latents)
