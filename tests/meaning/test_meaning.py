"""The demo checkpoint's films show what was asked for."""

import pytest
import torch
from bars import HANDOVER, OBEYED, ROUND_TRIP_LOSS
from demo_films import DIRECTIONS, STEPS
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.tools.demo_world.captions import captions
from framepack_pack.tools.demo_world.judge import judge_colour, judge_shape
from framepack_pack.tools.demo_world.sampling import held_out
from framepack_pack.tools.demo_world.scene import COLOURS, MOTIONS, SHAPES, join, scene
from framepack_pack.tools.evaluation.films import Order, decode_films, sample_films
from framepack_pack.tools.evaluation.measures import (
    direction_right,
    handover_psnr,
    judged_motions,
    kept_looks,
    start_psnr,
)

BY_HAND_STEPS = 2


def names(indices, kind):
    return [kind[index] for index in indices.flatten().tolist()]


def test_each_section_moves_as_its_prompt_says(film):
    judged = judged_motions(film.scenes, film.frames)
    obeyed = (judged == film.scenes.motions).float().mean()
    assert obeyed >= OBEYED, f"asked {names(film.scenes.motions, MOTIONS)}, judged {names(judged, MOTIONS)}"
    assert direction_right(film.scenes.motions, judged) == 1.0


def test_the_film_begins_with_the_start_image(film):
    assert film.frames.shape[1] == film.scenes.frames
    shown = start_psnr(film.scenes, film.frames[:, 0])
    possible = start_psnr(film.scenes, film.sampled.start_round_trip)
    assert (shown >= possible - ROUND_TRIP_LOSS).all()


def test_the_film_goes_on_from_the_start_image(film):
    assert (handover_psnr(film.scenes, film.frames) >= HANDOVER).all()


def test_the_object_keeps_colour_and_shape_to_the_last_frame(film):
    looks = kept_looks(film.scenes, film.frames)
    assert looks["colour"].all()
    assert looks["shape"].all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sections_wired_by_hand_equal_the_loop(tools, scenes, prompts, direction):
    order = Order(direction, BY_HAND_STEPS)
    by_loop, by_hand = (
        film_latents(sample_films(tools, scenes, prompts, order._replace(by_hand=by_hand)).history)
        for by_hand in (False, True)
    )
    assert torch.equal(by_loop, by_hand)


def test_text_to_video_makes_the_object_that_is_named(tools):
    named = join(
        [
            scene("heart", "yellow", "white", ["left"]),
            scene("star", "red", "black", ["up"]),
            scene("triangle", "red", "meadow", ["right"]),
            scene("square", "green", "white", ["grows"]),
        ]
    )
    assert held_out(named).all()
    order = Order(DIRECTIONS[-1], STEPS, has_start=False, cfg=2.0)
    sampled = sample_films(tools, named, [captions(named, 0)], order)
    frames = decode_films(tools, sampled.history)
    assert names(judge_colour(frames), COLOURS) == names(named.colour, COLOURS)
    assert names(judge_shape(frames), SHAPES) == names(named.shape, SHAPES)
    judged = judged_motions(named, frames, knows_background=False)
    assert names(judged, MOTIONS) == names(named.motions, MOTIONS)
