"""The tests of meaning can fail: films made with a mistake of FramePack's kind are called wrong."""

import pytest
from bars import HANDOVER, HANDOVER_FALL, MISTAKEN, OBEYED
from demo_films import STEPS, decode_at_once
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.tools.evaluation.controls import (
    reversed_sections,
    shifted_prompts,
    with_swapped_history,
    without_history,
)
from framepack_pack.tools.evaluation.films import Order, sample_films
from framepack_pack.tools.evaluation.measures import handover_psnr, judged_motions

FEW = 2  # films
BEGINNING = 5  # latent frames


def obeyed(scenes, frames):
    return (judged_motions(scenes, frames) == scenes.motions).float().mean()


@pytest.fixture
def few(scenes, prompts):
    return scenes[:FEW], [texts[:FEW] for texts in prompts]


@pytest.mark.parametrize("mistake", [without_history, with_swapped_history])
def test_a_section_that_does_not_see_its_history_does_not_go_on_from_the_start_image(tools, few, mistake):
    """Backward, as its first section in film order sees the start image on one side and the section after it."""
    sampled = sample_films(tools, *few, Order(Direction.BACKWARD, STEPS), mistake)
    psnr = handover_psnr(few[0], decode_at_once(tools, sampled.history, FEW, BEGINNING))
    assert (psnr < HANDOVER - HANDOVER_FALL).all()


def test_sections_in_the_wrong_order_do_not_obey(tools, film):
    frames = decode_at_once(tools, reversed_sections(film.sampled.history), FEW)
    assert obeyed(film.scenes[:FEW], frames) <= MISTAKEN < OBEYED


def test_prompts_of_the_wrong_sections_are_obeyed_which_is_wrong(tools, few):
    scenes, prompts = few
    sampled = sample_films(tools, scenes, shifted_prompts(prompts), Order(Direction.FORWARD, STEPS))
    assert obeyed(scenes, decode_at_once(tools, sampled.history, FEW)) <= MISTAKEN
