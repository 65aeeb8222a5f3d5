"""A run's report: its totals, its two forms, and the speed that the planner reads from it."""

import json

import pytest
from framepack_pack.framepack_core.run_report import RunReport, SectionReport, read_speed

GIB = 2**30


def section(number, **changes):
    usual = {"name": f"section {number}", "seconds": 10.0, "steps": 25, "step_seconds": 0.5}
    return SectionReport(**{**usual, **changes})


def report(*sections):
    return RunReport(
        film={"width": 640, "height": 640, "batch": 1, "mode": "backward", "window": 9, "sections": 4, "seed": 7},
        sampling={"steps": 25, "cfg": 1.0, "sampler": "flow_unipc", "forwards_per_step": 1, "tokens": 19257,
                  "tflop_per_step": 535.1},
        versions={"pack": "0.1.0", "ComfyUI": "0.3.75", "torch": "2.11.0"},
        card="NVIDIA H200",
        attention="pytorch",
        sections=sections,
    )  # fmt: skip


def test_totals_are_sums_and_largest_and_unknown_stays_unknown():
    slow = section(0, step_seconds=0.9, seconds=30.0, peak_vram=5 * GIB, weights=9 * GIB, weights_on_card=7 * GIB)
    skipped = section(1, computed=12, skipper="MagCache", peak_vram=6 * GIB)
    totals = report(slow, skipped, section(2)).totals()
    assert totals["seconds"] == 50.0
    assert totals["seconds_per_step"] == 0.5, "loading in the first section does not count"
    assert totals["skipped_steps"] == 13
    assert totals["peak_vram"] == 6 * GIB
    assert totals["streamed_per_forward"] == 2 * GIB
    assert totals["ram"] is None


def test_text_says_what_a_user_asks():
    text = report(section(0, computed=12, skipper="MagCache", ram=3 * GIB)).as_text()
    for said in ("1 of 4 backward sections", "640x640", "seed 7", "0.500 s per step", "13 steps skipped", "NVIDIA H200",
                 "3.00 GiB RAM", "unknown of torch", "MagCache computed 12 of 25", "ComfyUI 0.3.75"):  # fmt: skip
        assert said in text, said


def test_json_holds_everything_and_gives_the_speed():
    text = report(section(0), section(1)).as_json()
    assert json.loads(text)["sections"][1]["name"] == "section 1"
    assert read_speed(text) == (0.5, 535.1, "NVIDIA H200")


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", '{"totals": 1}'])
def test_other_text_is_refused_as_report(text):
    with pytest.raises(ValueError, match="not one of FramePack Sampler"):
        read_speed(text)


def test_a_run_too_short_to_time_gives_no_speed():
    with pytest.raises(ValueError, match="fewer than 4 steps"):
        read_speed(report(section(0, step_seconds=None)).as_json())
