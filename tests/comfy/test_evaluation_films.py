"""The films of scripts/evaluate.py: batches with prompts of their own, by every way, and mistakes that change them."""

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.tools.evaluation.calibration import patch_of
from framepack_pack.tools.evaluation.controls import (
    reversed_sections,
    shifted_prompts,
    with_swapped_history,
    without_history,
)
from framepack_pack.tools.evaluation.films import Order, Tools, draw_films, sample_films, section_prompts
from framepack_pack.tools.evaluation.variants import VARIANTS, NotHereError, attention, easy_cache

SHORT = Order(steps=2)


@pytest.fixture(scope="module")
def tools(tiny_folder):
    with torch.inference_mode():
        return Tools(tiny_folder)


@pytest.fixture(scope="module")
def drawn():
    return draw_films(2, 2, seed=1)


def latents(tools, drawn, order=SHORT, **changes):
    return film_latents(sample_films(tools, *drawn, order, **changes).history)


def test_each_film_of_a_batch_has_its_own_prompts(tools, drawn):
    prompts = drawn[1]
    prompts = [["a ball", "a big green star moves to the right"], *prompts[1:]]
    first, second = section_prompts(tools, prompts)
    alone = [tools.encode(text)[0] for text in prompts[0]]
    for row, (cond, values) in enumerate(alone):
        length = cond.shape[1]
        assert torch.equal(first[0][row, :length], cond[0])
        assert first[1]["attention_mask"][row].tolist() == [1] * length + [0] * (first[0].shape[1] - length)
        assert torch.equal(first[1]["pooled_output"][row], values["pooled_output"][0])
    assert [entry[1]["framepack_range"].start for entry in (first, second)] == [0, 1]
    film = latents(tools, drawn)
    other = latents(tools, (drawn[0], [[drawn[1][0][0], "a ball"], drawn[1][1]]))
    assert torch.allclose(film[0], other[0], atol=1e-4), "the neighbour's prompt is masked"
    assert not torch.allclose(film[1, :, 1:10], other[1, :, 1:10], atol=1e-2)


@pytest.mark.parametrize("direction", list(Direction))
def test_by_hand_equals_the_loop_with_cfg_too(tools, drawn, direction):
    order = SHORT._replace(direction=direction, cfg=2.0)
    assert torch.equal(latents(tools, drawn, order), latents(tools, drawn, order._replace(by_hand=True)))


def test_films_without_a_start_image_and_with_an_end_image(tools, drawn):
    film = latents(tools, drawn)
    assert film.shape == (2, 16, 19, 16, 16)
    assert latents(tools, drawn, SHORT._replace(has_start=False)).shape == (2, 16, 18, 16, 16)
    assert not torch.equal(latents(tools, drawn, SHORT._replace(has_end=True)), film)


def test_calls_of_the_model_are_counted_where_a_cache_skips_them(tools, drawn):
    order = SHORT._replace(steps=10)
    plain = sample_films(tools, *drawn, order).model_calls
    cached = sample_films(tools, *drawn, order, easy_cache(1e6)).model_calls
    assert (plain, cached < plain) == (20, True)


def test_every_mistake_changes_the_film(tools, drawn):
    scenes, prompts = drawn
    film = latents(tools, drawn)
    for mistake in (without_history, with_swapped_history):
        assert not torch.allclose(latents(tools, drawn, patch=mistake), film, atol=1e-2)
    assert not torch.allclose(latents(tools, (scenes, shifted_prompts(prompts))), film, atol=1e-2)
    history = sample_films(tools, scenes, prompts, SHORT).history
    assert torch.equal(film_latents(reversed_sections(history))[:, :, 1:10], film[:, :, 10:])


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.frames is None and v.sections is None], ids=lambda variant: variant.name
)
def test_every_row_can_be_made(tools, variant):
    scenes, prompts = draw_films(1, 1, seed=1)
    order = variant.order._replace(steps=2)
    try:
        history = sample_films(tools, scenes, variant.prompts(prompts), order, patch_of(variant, order, tools)).history
    except NotHereError as reason:
        pytest.skip(str(reason))
    assert torch.isfinite(film_latents(variant.finish(history))).all()


def test_attention_of_a_row_is_used_and_a_missing_one_named(tools, drawn, monkeypatch):
    film, calls = latents(tools, drawn), []
    split = host_attention.attention_split
    monkeypatch.setattr(host_attention, "attention_split", lambda *args, **kw: (calls.append(1), split(*args, **kw))[1])
    torch.testing.assert_close(latents(tools, drawn, patch=attention("split")), film, atol=1e-3, rtol=1e-3)
    assert calls
    monkeypatch.setattr(host_attention, "SAGE_ATTENTION_IS_AVAILABLE", False)
    with pytest.raises(NotHereError, match="sage"):
        attention("sage")(tools.checkpoint.model)
