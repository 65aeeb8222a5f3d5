"""Windows and cross-fades against the original's rule, computed here the original's way."""

import pytest
import torch
from framepack_pack.framepack_core.decoding import cross_fade, decode_film, decode_windows, decoded_frames
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_latents, new_history
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


def soft_append(history, current, overlap):
    """FP utils.py soft_append_bcthw by its rule, on [B, F, ...]."""
    weights = torch.linspace(1, 0, overlap).view(1, -1, 1, 1, 1)
    blended = weights * history[:, -overlap:] + (1 - weights) * current[:, :overlap]
    return torch.cat([history[:, :-overlap], blended, current[:, overlap:]], dim=1)


def original_way(history):
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
            frames = fake_decode(made) if frames is None else soft_append(fake_decode(part), frames, overlap)
        else:
            made = latents[:, :, : has_start + (number + 1) * window]
            part = made[:, :, -2 * window :]
            frames = fake_decode(made) if frames is None else soft_append(frames, fake_decode(part), overlap)
    return frames


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("has_start", [True, False])
def test_frames_equal_the_original_order(kind, count, window, has_start):
    history = random_film(kind, count, window, has_start)
    pieces = list(decode_film(history, fake_decode))
    frames = torch.cat(pieces, dim=1)
    expected = original_way(history)
    assert frames.shape == expected.shape
    assert frames.shape[1] == decoded_frames(history) == 4 * window * count + (1 if has_start else -3)
    torch.testing.assert_close(frames, expected)


@pytest.mark.parametrize("kind", PLANS)
def test_unfinished_films_decode(kind):
    history = random_film(kind, 3, sections=2)
    frames = torch.cat(list(decode_film(history, fake_decode)), dim=1)
    assert frames.shape[1] == decoded_frames(history) == (73 if kind == "forward" else 69)


def test_windows_are_bounded():
    for kind in PLANS:
        assert max(len(window.sections) for window in decode_windows(random_film(kind, 12))) == 2


def test_cross_fade_of_zeros_and_ones():
    fade = cross_fade(torch.zeros(1, 33, 1, 1, 3), torch.ones(1, 33, 1, 1, 3))[0, :, 0, 0, 0]
    torch.testing.assert_close(fade, torch.arange(33) / 32)


def test_fade_of_equal_frames_is_themselves():
    frames = torch.rand(1, 33, 2, 2, 3)
    torch.testing.assert_close(cross_fade(frames, frames), frames)


def test_105_frames_of_golden_lengths():
    zeros, ones = torch.zeros(1, 69, 1, 1, 3), torch.ones(1, 69, 1, 1, 3)
    joined = torch.cat([zeros[:, :36], cross_fade(zeros[:, 36:], ones[:, :33]), ones[:, 33:]], dim=1)
    assert joined.shape[1] == 105
    assert abs(float(joined[0, 36 + 8, 0, 0, 0]) - 8 / 32) < 1e-6


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="no section yet"):
        decode_windows(new_history(plan_backward(1, 9), 0, 16, 16))
