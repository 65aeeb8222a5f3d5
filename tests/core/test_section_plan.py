"""Golden tables from the original's code, and what must hold for every plan."""

import pytest
from framepack_pack.framepack_core.section_plan import (
    START_FRAME,
    Direction,
    count_sections,
    parse_paddings,
    plan_backward,
    plan_film,
    plan_forward,
    usual_paddings,
)

SECTIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 4, 6: 5, 10: 8, 30: 25, 60: 50, 120: 100}


@pytest.mark.parametrize(("seconds", "sections"), SECTIONS.items())
def test_sections_of_a_length(seconds, sections):
    assert count_sections(seconds, 9) == sections


@pytest.mark.parametrize(
    ("count", "paddings"),
    [(1, (0,)), (2, (1, 0)), (4, (3, 2, 1, 0)), (5, (3, 2, 2, 1, 0)), (8, (3, 2, 2, 2, 2, 2, 1, 0))],
)
def test_usual_paddings(count, paddings):
    assert usual_paddings(count) == paddings


def test_backward_layout():
    sections = plan_backward(5, 9).sections
    first, last = sections[0], sections[-1]
    assert (first.start_index, first.target.indices) == (0, range(28, 37))
    assert first.history_1x.indices == range(37, 38)
    assert first.history_2x.indices == range(38, 40)
    assert first.history_4x.indices == range(40, 56)
    assert last.target.indices == range(1, 10)
    assert first.target.frames == range(36, 45)
    assert (first.history_1x.frames, first.history_2x.frames, first.history_4x.frames) == (
        range(45, 46),
        range(46, 48),
        range(48, 64),
    )
    assert last.target.frames == range(9)


def test_forward_layout():
    plan = plan_forward(3, 9)
    for section in plan.sections:
        assert (section.start_index, section.history_4x.indices) == (0, range(1, 17))
        assert (section.history_2x.indices, section.history_1x.indices) == (range(17, 19), range(19, 20))
        assert section.target.indices == range(20, 29)
    assert plan.sections[0].history_1x.frames == range(START_FRAME, 0)
    assert plan.sections[2].target.frames == range(18, 27)
    assert plan.sections[2].history_4x.frames == range(-1, 15)


@pytest.mark.parametrize("window", [1, 3, 9, 13])
@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("make", [plan_backward, plan_forward])
def test_every_frame_is_made_once_and_history_touches_the_section(make, count, window):
    plan = make(count, window)
    made = sorted(frame for section in plan.sections for frame in section.target.frames)
    assert made == list(range(plan.latent_frames))
    for section in plan.sections:
        streams = (section.target, section.history_1x, section.history_2x, section.history_4x)
        assert [len(stream.frames) for stream in streams] == [window, 1, 2, 16]
        indices = [index for stream in streams for index in stream.indices]
        assert len(set(indices)) == len(indices)
        for stream in streams:
            assert len(stream.frames) == len(stream.indices)
            # film frames and indices keep the same distances
            assert stream.frames.start - section.target.frames.start == (
                stream.indices.start - section.target.indices.start
            )
        seen = {frame for stream in streams[1:] for frame in stream.frames}
        beside = section.target.frames.stop if plan.neighbour == 1 else section.target.frames.start - 1
        assert beside in seen


def test_names_count_in_film_order():
    plan = plan_backward(4, 9)
    assert plan.name(plan.sections[0]) == "section 3 (3.6 s to 4.8 s, made as 1 of 4)"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_lengths_that_are_not_positive_are_refused(seconds):
    with pytest.raises(ValueError, match="length above 0 seconds"):
        count_sections(seconds, 9)


@pytest.mark.parametrize("window", [0, -9])
def test_windows_that_are_not_positive_are_refused(window):
    with pytest.raises(ValueError, match="at least 1 latent frame"):
        count_sections(5, window)


@pytest.mark.parametrize(
    ("paddings", "message"),
    [
        ((1, 0), "2 entries, but the film has 4 sections.*3, 2, 1, 0"),
        ((3, -1, 1, 0), "negative entry"),
        ((3, 2, 1, 1), "ends with 1"),
    ],
)
def test_paddings_that_do_not_fit_are_refused(paddings, message):
    with pytest.raises(ValueError, match=message):
        plan_film(Direction.BACKWARD, 5, 9, paddings)


def test_custom_paddings_move_the_section():
    plan = plan_film(Direction.BACKWARD, 5, 9, (5, 0, 2, 0))
    assert [section.target.indices.start for section in plan.sections] == [46, 1, 19, 1]


def test_forward_films_take_no_paddings():
    with pytest.raises(ValueError, match="belong to backward films"):
        plan_film(Direction.FORWARD, 5, 9, (3, 2, 1, 0))


def test_paddings_are_read_from_text():
    assert parse_paddings(" 3, 2 1,0 ") == (3, 2, 1, 0)
    assert parse_paddings("  ") is None
    with pytest.raises(ValueError, match="latent_paddings is 'one'.*whole numbers"):
        parse_paddings("one")
