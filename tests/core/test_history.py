"""What a history holds, gives and refuses, in both directions."""

import pytest
import torch
from framepack_pack.framepack_core.generate import check_finite, generate, run_section
from framepack_pack.framepack_core.history import append_section, film_frames, film_latents, new_history, read_frames
from framepack_pack.framepack_core.packing import pack_history
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward

PLANS = {"backward": plan_backward, "forward": plan_forward}
START, END = -7.0, 7.0


def latent(value, frames=1):
    return torch.full((1, 16, frames, 4, 6), float(value))


def film(kind, count, window=9, **images):
    return new_history(PLANS[kind](count, window), seed=1, width=48, height=32, **images)


def place_coded(section, packed, noise):
    """A section whose frames are their film frame numbers plus 1."""
    values = torch.tensor([frame + 1.0 for frame in section.target.frames])
    return torch.ones_like(noise) * values.view(1, 1, -1, 1, 1)


def values(frames):
    return frames[0, 0, :, 0, 0].tolist()


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_films_are_in_order_and_36n_plus_1_frames(kind, count):
    history = generate(film(kind, count, start_latent=latent(START)), place_coded)
    latents = film_latents(history)
    assert values(latents) == [START, *range(1, 9 * count + 1)]
    assert film_frames(latents.shape[2]) == 36 * count + 1


def test_text_to_video_has_no_start_frame():
    latents = film_latents(generate(film("backward", 2), place_coded))
    assert values(latents) == list(range(1, 19))
    assert film_frames(latents.shape[2]) == 36 * 2 - 3


def test_backward_sections_see_what_comes_after():
    history = film("backward", 3, start_latent=latent(START), end_latent=latent(END))
    seen = []

    def watch(section, packed, noise):
        seen.append([values(group) for group in packed[:3]])
        return place_coded(section, packed, noise)

    generate(history, watch)
    zeros = [0.0] * 16
    assert seen[0] == [[START, END], [0.0, 0.0], zeros]
    assert seen[1] == [[START, 19.0], [20.0, 21.0], [22.0, 23.0, 24.0, 25.0, 26.0, 27.0, END, *zeros[7:]]]
    assert seen[2][0] == [START, 10.0]
    assert seen[2][2] == [*range(13, 28), END]


def test_forward_sections_see_what_came_before():
    seen = []

    def watch(section, packed, noise):
        seen.append([values(group) for group in packed[:3]])
        return place_coded(section, packed, noise)

    generate(film("forward", 3, start_latent=latent(START)), watch)
    assert seen[0] == [[START, START], [0.0, 0.0], [0.0] * 16]
    assert seen[1] == [[START, 9.0], [7.0, 8.0], [*[0.0] * 9, START, *range(1, 7)]]
    assert seen[2] == [[START, 18.0], [16.0, 17.0], [START, *range(1, 16)][-16:]]


def test_packed_indices_are_the_plans():
    history = film("backward", 5, start_latent=latent(START))
    packed = pack_history(history, history.next_section)
    assert packed.indices.section == tuple(range(28, 37))
    assert packed.indices.history_1x == (0, 37)
    assert packed.indices.history_2x == (38, 39)
    assert packed.indices.history_4x == tuple(range(40, 56))
    without_start = film("backward", 5)
    packed = pack_history(without_start, without_start.next_section)
    assert packed.indices.history_1x == (37,)
    assert packed.history_1x.shape[2] == 1


def test_scaled_history_is_in_the_models_units():
    history = film("backward", 1, start_latent=latent(2.0))
    packed = pack_history(history, history.next_section).scaled()
    assert abs(float(packed.history_1x[0, 0, 0, 0, 0]) - 2 * 0.476986) < 1e-6


def test_histories_are_values():
    first = film("backward", 2, start_latent=latent(START))
    kept = first.sections
    second = run_section(first, place_coded)
    assert first.sections is kept
    assert (first.draws, second.draws) == (0, 1)
    assert generate(first, place_coded, max_sections=1).draws == 1
    assert torch.equal(film_latents(generate(second, place_coded)), film_latents(generate(first, place_coded)))


def test_histories_keep_their_own_tensors():
    given = latent(1.0)
    history = film("backward", 1, start_latent=given.double())
    given.zero_()
    assert history.start_latent.dtype == torch.float32
    assert values(history.start_latent) == [1.0]


def test_batches_make_several_films():
    starts = torch.cat([latent(1), latent(2)])
    history = generate(film("forward", 2, start_latent=starts), place_coded)
    assert film_latents(history).shape == (2, 16, 19, 4, 6)
    assert film_latents(history)[:, 0, 0, 0, 0].tolist() == [1.0, 2.0]


def test_unmade_frames_are_zero():
    assert not read_frames(film("backward", 2), range(-30, 40)).any()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.zeros(1, 4, 1, 4, 6), r"start_latent has shape \(1, 4, 1, 4, 6\).*HunyuanVideo VAE"),
        (torch.zeros(1, 16, 2, 4, 6), "start_latent has shape.*one frame"),
        (torch.zeros(16, 4, 6), "start_latent has shape"),
        (torch.full((1, 16, 1, 4, 6), float("nan")), "start_latent holds values that are not finite"),
        (torch.zeros(1, 16, 1, 5, 6), "48x40 pixels; both sides must be a multiple of 16"),
    ],
)
def test_start_latents_that_do_not_fit_are_refused(start, message):
    with pytest.raises(ValueError, match=message):
        film("backward", 1, start_latent=start)


@pytest.mark.parametrize(("width", "height"), [(650, 640), (640, 100), (0, 640)])
def test_sizes_that_are_not_a_multiple_of_16_are_refused(width, height):
    with pytest.raises(ValueError, match=f"{width}x{height} pixels; both sides must be a multiple of 16"):
        new_history(plan_backward(1, 9), 0, width, height)


def test_end_images_need_a_backward_film_of_their_size():
    with pytest.raises(ValueError, match="An end image needs a backward film"):
        film("forward", 2, end_latent=latent(END))
    with pytest.raises(ValueError, match="end_latent is 64x32 pixels, the film 48x32"):
        film("backward", 2, end_latent=torch.zeros(1, 16, 1, 4, 8))


def test_sections_that_do_not_fit_are_refused():
    history = film("backward", 1)
    with pytest.raises(ValueError, match=r"made as 1 of 1\) have shape \(1, 16, 8, 4, 6\), the history needs"):
        append_section(history, torch.zeros(1, 16, 8, 4, 6))
    with pytest.raises(ValueError, match=r"section 0 .* hold NaN"):
        append_section(history, torch.full((1, 16, 9, 4, 6), float("nan")))
    whole = append_section(history, torch.zeros(1, 16, 9, 4, 6))
    for more in (lambda: append_section(whole, torch.zeros(1, 16, 9, 4, 6)), lambda: run_section(whole, place_coded)):
        with pytest.raises(ValueError, match="already has all of its 1 sections"):
            more()


def test_an_empty_history_has_no_film():
    with pytest.raises(ValueError, match="no section yet"):
        film_latents(film("backward", 1))


def test_nan_of_the_model_names_section_and_step():
    with pytest.raises(ValueError, match=r"NaN or infinity at step 3 of section 1 \(1.2 s"):
        check_finite(torch.tensor([float("inf")]), plan_backward(2, 9).name(plan_backward(2, 9).sections[0]), 3)
