"""The measures of scripts/evaluate.py: full marks for true films, and not for films with mistakes."""

from dataclasses import replace

import pytest
import torch
from framepack_pack.tools.demo_world.render import render
from framepack_pack.tools.demo_world.scene import MOTIONS, SECTION_FRAMES, join, scene
from framepack_pack.tools.evaluation.measures import handover_psnr, measure, psnr
from framepack_pack.tools.evaluation.results import is_done, read_report, write_report
from framepack_pack.tools.evaluation.table import markdown

SIDE = 64
FIRST_OF_TEXT_FILM = 4  # text-to-video films are 4 frames shorter than those with a start image


@pytest.fixture(scope="module")
def scenes():
    return join(
        [
            scene("triangle", "red", "meadow", ["up", "right"]),
            scene("star", "blue", "beach", ["bounces", "grows"]),
        ]
    )


@pytest.fixture(scope="module")
def frames(scenes):
    return render(scenes, range(scenes.frames), SIDE, SIDE)


def test_true_films_get_full_marks(scenes, frames):
    row = measure(scenes, frames)
    assert [row[name] for name in ("obeyed", "direction", "colour", "shape")] == [1.0] * 4
    assert row["obeyed_by_section"] == [1.0, 1.0]
    assert row["mistakes"] == {}
    assert min(row["first_frame_psnr"], row["handover_psnr"], row["last_frame_psnr"], *row["section_psnr"]) > 90


def test_text_to_video_films_are_judged_without_their_background_and_first_frames(scenes, frames):
    row = measure(scenes, frames[:, FIRST_OF_TEXT_FILM:], has_start=False)
    assert [row[name] for name in ("obeyed", "direction", "colour", "shape")] == [1.0] * 4
    assert row["section_psnr"] is None


def test_sections_in_another_order_lose_marks(scenes, frames):
    first, *sections = frames.split([1, SECTION_FRAMES, SECTION_FRAMES], 1)
    row = measure(scenes, torch.cat([first, *reversed(sections)], 1))
    assert row["obeyed"] == 0.0
    assert sum(row["mistakes"].values()) == 4
    assert max(row["section_psnr"]) < 30
    assert row["first_frame_psnr"] > 90


def test_one_wrong_section_is_seen_where_it_is(scenes, frames):
    asked = replace(scenes, motions=scenes.motions.index_fill(1, torch.tensor(1), MOTIONS.index("left")))
    row = measure(asked, frames)
    assert row["obeyed_by_section"] == [1.0, 0.0]
    assert row["mistakes"] == {"left -> grows": 1, "left -> right": 1}
    assert row["direction"] == pytest.approx(1 / 3)


def test_a_change_of_colour_and_shape_is_seen_in_the_last_frame(scenes, frames):
    other = replace(scenes, colour=scenes.colour.flip(0), shape=scenes.shape.flip(0))
    last = render(other, [scenes.frames - 1], SIDE, SIDE)
    row = measure(scenes, torch.cat([frames[:, :-1], last], 1))
    assert (row["colour"], row["shape"], row["obeyed"]) == (0.0, 0.0, 1.0)


def test_a_film_that_does_not_go_on_from_its_start_image_is_seen_behind_it(scenes, frames):
    jump = torch.cat([frames[:, :1], frames[:, 1:].flip(0)], 1)
    assert (handover_psnr(scenes, jump) < 20).all()


def test_psnr_is_per_film():
    black, grey = torch.zeros(1, 2, 2, 3), torch.full((1, 2, 2, 3), 0.1)
    torch.testing.assert_close(psnr(torch.cat([black, grey]), torch.cat([grey, grey])), torch.tensor([20.0, 100.0]))


def test_rows_are_kept_and_rows_of_another_run_refused(tmp_path, scenes, frames):
    file, made_with = tmp_path / "evaluation.json", {"checkpoint": "abc", "films": 2}
    report = read_report(file, made_with)
    figures = {**measure(scenes, frames), "films": 2, "sections": 2}
    report["rows"] = {
        "one": {**figures, "latents_sha256": "f00"},
        "two": {**figures, "latents_sha256": "f00"},
        "three": {"failed": "RuntimeError: no"},
        "four": {"not_here": "no sage"},
    }
    write_report(file, report)
    again = read_report(file, made_with)
    assert [is_done(again["rows"].get(name)) for name in ("one", "three", "four", "five")] == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(ValueError, match="made with films 2; this run has films 3"):
        read_report(file, {**made_with, "films": 3})
    page = markdown(again).splitlines()
    assert next(line for line in page if line.startswith("| one ")).count("100.0 %") == 4
    assert next(line for line in page if line.startswith("| two ")).endswith("| one |")
    assert any("FAILED: RuntimeError: no" in line for line in page)
    assert any("no sage" in line for line in page)
