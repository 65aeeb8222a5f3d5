"""The demo world draws what its scenes say, says what they show, and its judge tells one motion from another."""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from framepack_pack.tools.demo_world.backgrounds import paint_backgrounds
from framepack_pack.tools.demo_world.captions import captions, motion_phrases, vocabulary
from framepack_pack.tools.demo_world.judge import judge_colour, judge_motion, judge_shape
from framepack_pack.tools.demo_world.measure import track_object
from framepack_pack.tools.demo_world.motion import LARGEST, SMALLEST, film_states, start_state
from framepack_pack.tools.demo_world.render import render, wrapped
from framepack_pack.tools.demo_world.sampling import held_out, random_scenes
from framepack_pack.tools.demo_world.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SECTION_FRAMES,
    SHAPES,
    SIZES,
    join,
    scene,
    section_frames,
)
from framepack_pack.tools.demo_world.shapes import area_radius, outline_profile, shape_distance

SIDE = 128


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def every_motion(seed=0):
    """Held-out films whose second section shows each motion once."""
    scenes = random_scenes(len(MOTIONS), 2, seeded(seed), for_tests=True)
    motions = torch.stack([scenes.motions[:, 0], torch.arange(len(MOTIONS))], 1)
    return replace(scenes, motions=motions)


def degraded(frames, seed=0):
    """Soft and noisy, as a small VAE leaves them."""
    images = frames.flatten(0, 1).permute(0, 3, 1, 2)
    images = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(images.shape, generator=seeded(seed)) * 0.03
    return (images + noise).clamp(0, 1).permute(0, 2, 3, 1).view_as(frames)


def names(indices, kind):
    return [kind[index] for index in indices.tolist()]


def test_states_are_continuous_over_sections():
    scenes = random_scenes(64, 6, seeded())
    states = film_states(scenes, range(scenes.frames))
    step = states.position.diff(dim=1)
    assert (step - step.round()).norm(dim=-1).max() < 0.07  # a hop begins fastest; round the picture is no way
    assert states.radius.log().diff(dim=1).abs().max() < 0.07
    turn = states.angle.diff(dim=1).abs()
    assert torch.minimum(turn, 2 * torch.pi - turn).max() < 0.18


@pytest.mark.parametrize(("motion", "path"), [("right", (0.5, 0)), ("left", (-0.5, 0)), ("up", (0, -0.5))])
def test_named_motions_go_where_they_say(motion, path):
    states = film_states(scene("star", "red", "white", [motion]), [0, SECTION_FRAMES // 2])
    torch.testing.assert_close((states.position[0, 1] - states.position[0, 0]), torch.tensor(path).float())


@pytest.mark.parametrize("size", [(48, 48), (48, 80)])
def test_every_section_ends_as_it_starts(size):
    scenes = join([scene("heart", "pink", "beach", [motion, "right"]) for motion in MOTIONS])
    start, border = render(scenes, [0, SECTION_FRAMES], *size).unbind(1)
    torch.testing.assert_close(border, start, atol=1e-4, rtol=0)


def test_sizes_change_visibly_and_stay_sensible():
    scenes = join([scene("ball", "red", "white", [motion], size) for motion in ("grows", "shrinks") for size in SIZES])
    middle, start = film_states(scenes, [SECTION_FRAMES // 2]).radius[:, 0], start_state(scenes).radius
    assert (middle[:2] > 1.4 * start[:2]).all()
    assert (middle[2:] < start[2:] / 1.4).all()
    assert middle.max() <= LARGEST
    assert middle.min() >= SMALLEST


def test_a_film_has_no_frames_beyond_its_motions():
    film = scene("ball", "red", "white", ["right", "left"])
    assert film.frames == 73
    assert render(film, [72], 16, 16).shape == (1, 1, 16, 16, 3)
    with pytest.raises(ValueError, match="frames 0 to 72"):
        render(film, [73], 16, 16)
    with pytest.raises(ValueError, match="no colour 'mauve'.*red"):
        scene("ball", "mauve", "white", ["right"])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 80), (72, 40)])
def test_pictures_of_any_size_show_the_same_world(height, width):
    scenes = random_scenes(6, 1, seeded())
    small = render(scenes, [0, 30], height, width)
    large = render(scenes, [0, 30], 4 * height, 4 * width)
    assert small.shape == (6, 2, height, width, 3)
    assert small.min() >= 0
    assert small.max() <= 1
    pooled = torch.nn.functional.avg_pool2d(large.flatten(0, 1).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert (pooled - small.flatten(0, 1)).abs().mean() < 0.012


def test_what_leaves_at_one_edge_comes_in_at_the_other():
    film = scene("heart", "pink", "grey", ["right", "right"], start=(0.75, 0.5))
    first, half_way, last = render(film, [0, 18, 36], 64, 64)[0]
    torch.testing.assert_close(first, last, atol=1e-4, rtol=0)
    torch.testing.assert_close(first.roll(32, 1), half_way, atol=1e-4, rtol=0)


def test_films_of_a_batch_do_not_depend_on_each_other():
    scenes = random_scenes(5, 1, seeded())
    together = render(scenes, [0, 20], 40, 56)
    torch.testing.assert_close(torch.cat([render(scenes[i : i + 1], [0, 20], 40, 56) for i in range(5)]), together)


def test_only_spinning_turns_a_ball():
    films = join([scene("ball", "red", "white", [motion]) for motion in ("spins", "stays still")])
    spun, still = (render(films, [0, 12], 64, 64).diff(dim=1).abs() > 0.2).sum((1, 2, 3, 4)).tolist()
    assert spun > 40
    assert still == 0


def test_shapes_are_centred_and_of_like_size():
    line = torch.linspace(-1.6, 1.6, 200)
    size = (len(SHAPES), 200, 200)
    x, y = line.expand(size), line[:, None].expand(size)
    inside = (shape_distance(torch.arange(len(SHAPES)), x, y) < 0).float()
    for way in (x, y):
        assert ((inside * way).sum((1, 2)) / inside.sum((1, 2))).abs().max() < 0.01
    assert area_radius().max() / area_radius().min() < 1.15
    assert outline_profile(64).max() < 1.42  # the renderer's reach


def test_every_background_and_colour_differ():
    films = join([scene("ball", "red", background, ["spins"]) for background in BACKGROUNDS])
    pictures = paint_backgrounds(films, 32, 32)
    distances = [(a - b).abs().mean() for number, a in enumerate(pictures) for b in pictures[:number]]
    assert min(distances) > 0.04


def test_held_out_combinations_are_a_tenth_and_never_in_training():
    training, tests = (random_scenes(2000, 1, seeded(), for_tests=kept) for kept in (False, True))
    assert not held_out(training).any()
    assert held_out(tests).all()
    everything = join([scene(*looks, ["spins"]) for looks in product(SHAPES, COLOURS, BACKGROUNDS)])
    kept = held_out(everything)
    assert 0.08 < kept.float().mean() < 0.12
    for part, values in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        assert set(getattr(everything, part)[kept].tolist()) == set(range(len(values)))
    pairs = {(shape, colour) for shape, colour in zip(training.shape.tolist(), training.colour.tolist(), strict=True)}
    assert len(pairs) == len(SHAPES) * len(COLOURS)


def test_a_seed_gives_the_same_films_and_captions():
    first, second = (random_scenes(20, 3, seeded(4)) for _ in range(2))
    assert torch.equal(render(first, [5], 16, 16), render(second, [5], 16, 16))
    assert captions(first, 2, seeded(7)) == captions(second, 2, seeded(7))
    assert captions(first, 2, seeded(7)) != captions(first, 2, seeded(8))


def test_captions_say_what_the_scene_shows():
    film = scene("star", "orange", "white", ["right", "grows", "up"], size="small")
    assert captions(film, 0) == ["a small orange star moves right on a white background"]
    assert captions(film, 1) == ["a small orange star grows for a moment on a white background"]
    assert captions(film, 2) == ["a small orange star moves up on a white background"]
    texts = [captions(film, 0, seeded(seed))[0] for seed in range(200)]
    assert len(set(texts)) > 60
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE)]
    full = [captions(film, 0, seeded(seed), full=True)[0] for seed in range(50)]
    assert all("orange" in text and "star" in text and "white" in text for text in full)


def test_captions_keep_to_the_vocabulary():
    words = set(vocabulary())
    scenes = random_scenes(400, 3, seeded())
    used = {
        word for section in range(3) for text in captions(scenes, section, seeded(section))
        for word in re.findall("[a-z]+", text.lower())
    }  # fmt: skip
    assert used <= words
    assert len(used) > 0.9 * len(words)
    assert len(words) < 200


def test_a_motion_can_be_drawn_more_often():
    motions = random_scenes(300, 4, seeded(), odds={"spins": 8.0}).motions
    assert 0.4 < float((motions == MOTIONS.index("spins")).float().mean()) < 0.6
    assert len(motions.unique()) == len(MOTIONS)


def test_no_two_motions_share_a_wording():
    wordings = [text for motion in MOTIONS for pair in motion_phrases(motion) for text in pair]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("look", ["true", "degraded", "unknown background"])
def test_the_judge_names_motion_colour_and_shape_of_held_out_films(look):
    seed = len(look)
    scenes = every_motion(seed)
    frames = render(scenes, section_frames(1), SIDE, SIDE)
    background = paint_backgrounds(scenes, SIDE, SIDE) if look != "unknown background" else None
    if look == "degraded":
        frames = degraded(frames)
    assert names(judge_motion(frames, background), MOTIONS) == list(MOTIONS)
    assert names(judge_colour(frames, background), COLOURS) == names(scenes.colour, COLOURS)
    assert names(judge_shape(frames, background), SHAPES) == names(scenes.shape, SHAPES)


def test_the_judge_is_not_fooled_by_films_that_run_backwards():
    scenes = every_motion(3)
    frames = render(scenes, section_frames(1)[::4], SIDE, SIDE)
    judged = names(judge_motion(frames.flip(1), paint_backgrounds(scenes, SIDE, SIDE)), MOTIONS)
    opposite = {"right": "left", "up": "down"}
    opposite |= {back: there for there, back in opposite.items()}
    seen = dict(zip(MOTIONS, judged, strict=True))
    assert {motion: seen[motion] for motion in opposite} == opposite
    for motion in ("stays still", "bounces", "grows", "shrinks"):
        assert seen[motion] == motion, "the same both ways"


def test_the_judge_names_what_is_seen_not_what_was_asked():
    red, blue = (scene(shape, colour, "beach", ["down"]) for shape, colour in (("ball", "red"), ("star", "blue")))
    background = paint_backgrounds(red, SIDE, SIDE)
    frames = render(red, section_frames(0), SIDE, SIDE)
    frozen = frames[:, :1].expand_as(frames)
    cut = torch.cat([frames[:, :18], render(blue, section_frames(0), SIDE, SIDE)[:, 18:]], 1)
    assert names(judge_motion(frozen, background), MOTIONS) == ["stays still"]
    assert names(judge_colour(cut[:, -4:], background), COLOURS) == ["blue"]
    assert names(judge_shape(cut[:, -4:], background), SHAPES) == ["star"]


def test_tracks_are_exact_to_a_pixel_over_the_edges_of_wide_pictures():
    scenes = random_scenes(6, 2, seeded(9), for_tests=True)
    frames = render(scenes, section_frames(1), 96, 160)
    track = track_object(frames, scenes.colour, paint_backgrounds(scenes, 96, 160))
    truth = film_states(scenes, section_frames(1), (160 / 96, 1.0))
    error = track.position - (truth.position - truth.position[:, :1])
    error = torch.stack([wrapped(error[..., axis], length) for axis, length in enumerate((160 / 96, 1.0))], -1)
    error = error.norm(dim=-1) * 96
    assert error.mean() < 0.3
    assert (track.radius / truth.radius - 1).abs().max() < 0.15
