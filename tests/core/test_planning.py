"""Figures of a film before it is made, against sizes that are known, and every rule of what does not go together."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_frames, film_latents, new_history
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.planning.cards import find_card
from framepack_pack.framepack_core.planning.cost import (
    Weights,
    activation_bytes,
    config_weights,
    count_tokens,
    forward_flops,
)
from framepack_pack.framepack_core.planning.plan_text import as_json, as_text, duration
from framepack_pack.framepack_core.planning.request import Machine, Request
from framepack_pack.framepack_core.planning.resolve import resolve, spans_of
from framepack_pack.framepack_core.planning.rules import ERROR, NOTE, RULES, WARNING
from framepack_pack.framepack_core.run_report import Speed
from framepack_pack.framepack_core.section_plan import Direction, plan_backward, plan_forward

GIB = 2**30
FULL = FramePackConfig()
WEIGHTS = Weights(loop=17 * GIB, beside=7 * GIB)
H200 = Machine("H200", vram=140 * GIB, ram=500 * GIB, tflops=650, link=50e9)
PLAIN = Request(plan_backward(4, 9), 640, 640, FULL, WEIGHTS)


def rules_of(machine=H200, **changes):
    return {message.rule: message for message in resolve(replace(PLAIN, **changes), machine)[1]}


@pytest.mark.parametrize(
    ("width", "height", "total", "tflop"), [(640, 640, 19257, 535.1), (832, 480, 18823, 517.0), (448, 448, 9873, 206.0)]
)
def test_tokens_and_work_are_those_of_the_formulas(width, height, total, tflop):
    tokens = count_tokens(width, height, 9)
    assert tokens.total == total
    assert forward_flops(FULL, total) / 1e12 == pytest.approx(tflop, abs=0.06)


def test_weights_are_those_of_the_released_checkpoints():
    weights = config_weights(FULL, 2)
    assert sum(weights) == pytest.approx(25.75e9, rel=1e-3)
    assert weights.loop == pytest.approx(18.15e9, rel=1e-3)


def test_activations_grow_with_tokens_and_pieces_make_them_smaller():
    whole = activation_bytes(FULL, 19257, 2, 19257)
    assert 1.6 * GIB < whole < 2.1 * GIB  # torch: 26.0 GiB with 24.0 of weights (docs/benchmarks.md)
    assert activation_bytes(FULL, 2 * 19257, 2, 2 * 19257) == 2 * whole
    assert activation_bytes(FULL, 19257, 2, 1024) < 0.6 * whole


@pytest.mark.parametrize("kind", [plan_backward, plan_forward])
@pytest.mark.parametrize("starts", [True, False])
def test_spans_are_the_frames_of_the_film(kind, starts):
    plan = kind(3, 9)
    start = torch.zeros(1, 16, 1, 4, 6) if starts else None
    history = generate(new_history(plan, 0, 48, 32, start_latent=start), lambda section, packed, noise: noise)
    spans = spans_of(replace(PLAIN, plan=plan, starts_with_image=starts, made=1))
    assert [span.place for span in spans] == [0, 1, 2]
    assert spans[0].frames.start == 0
    assert all(before.frames.stop == after.frames.start for before, after in pairwise(spans))
    assert spans[-1].frames.stop == film_frames(film_latents(history).shape[2])
    first_made = 2 if plan.direction is Direction.BACKWARD else 0
    assert [span.place for span in spans if span.done] == [first_made]
    assert spans[first_made].made_as == 1


def test_time_is_measured_said_or_guessed_in_that_order():
    guess, _ = resolve(PLAIN, H200)
    assert guess.step_seconds == pytest.approx(535.1 / 650, rel=1e-3)
    assert "guess" in guess.step_source
    assert guess.sampling_seconds == pytest.approx(4 * 25 * guess.step_seconds)
    smaller = replace(PLAIN, width=448, height=448, made=1, speed=Speed(2.0, 535.1, "H200"))
    measured, messages = resolve(smaller, H200)
    assert measured.step_seconds == pytest.approx(2.0 * 206.0 / 535.1, rel=1e-3)
    assert measured.sampling_seconds == pytest.approx(3 * 25 * measured.step_seconds)
    assert "measured on H200" in measured.step_source
    assert [message.rule for message in messages] == ["size of the training"]
    assert resolve(replace(smaller, seconds_per_step=7.0), H200)[0].step_seconds == 7.0
    assert resolve(replace(PLAIN, cfg=2.0), H200)[0].step_seconds == pytest.approx(2 * guess.step_seconds)


def test_weights_that_do_not_fit_are_streamed_and_the_rest_stays():
    all_fit, _ = resolve(PLAIN, H200)
    assert (all_fit.on_card, all_fit.streamed) == (17 * GIB, 0)
    assert all_fit.vram == 17 * GIB + activation_bytes(FULL, 19257, 2, 10240)
    small = replace(H200, vram=12 * GIB)
    part, _ = resolve(PLAIN, small)
    assert part.streamed == 17 * GIB - part.on_card > 0
    assert part.vram <= 12 * GIB
    assert part.ram > 7 * GIB + part.streamed
    kept, _ = resolve(PLAIN, replace(small, reserve=4 * GIB))
    assert kept.on_card == 8 * GIB
    slow, _ = resolve(PLAIN, replace(small, link=1e9))
    assert slow.step_seconds == pytest.approx(slow.streamed / 1e9)
    assert resolve(PLAIN, replace(H200, vram=None))[0].streamed == 0


RULE_CASES = {
    "size multiple": (ERROR, {"width": 650}, {}),
    "direction": (ERROR, {"checkpoint_direction": Direction.FORWARD}, {}),
    "F1 and end image": (ERROR, {"plan": plan_forward(4, 9), "has_end_image": True}, {}),
    "F1 and paddings": (ERROR, {"plan": plan_forward(4, 9), "has_paddings": True}, {}),
    "cfg and negative": (ERROR, {"cfg": 2.0}, {}),
    "start image and vision": (ERROR, {"has_vision": False}, {}),
    "two skippers": (ERROR, {"skippers": ("MagCache", "EasyCache")}, {}),
    "two quantisers": (ERROR, {"quantisers": ("fp8", "GGUF")}, {}),
    "no room": (ERROR, {}, {"vram": GIB // 2}),
    "compile and streaming": (WARNING, {"compiled": True}, {"vram": 12 * GIB}),
    "GGUF and LoRA": (WARNING, {"quantisers": ("GGUF",), "has_loras": True}, {}),
    "guidance doubles": (NOTE, {"cfg": 2.0, "has_negative": True}, {}),
    "window": (WARNING, {"plan": plan_backward(4, 5)}, {}),
    "size of the training": (WARNING, {"width": 1280, "height": 720}, {}),
    "length": (WARNING, {"plan": plan_backward(101, 9)}, {}),
    "few steps": (WARNING, {"steps": 8}, {}),
    "no start image": (NOTE, {"starts_with_image": False}, {}),
    "slow link": (WARNING, {"seconds_per_step": 0.1}, {"vram": 12 * GIB}),
    "image in RAM": (WARNING, {"plan": plan_backward(50, 9)}, {"ram": 10 * GIB}),
    "weights in RAM": (WARNING, {}, {"vram": 8 * GIB, "ram": 8 * GIB}),
    "decoding in parts": (NOTE, {"decode_bytes": 20 * GIB}, {"vram": 12 * GIB}),
    "another card": (WARNING, {"speed": Speed(1.0, 535.0, "NVIDIA L4")}, {}),
    "time unknown": (NOTE, {}, {"tflops": None}),
}


@pytest.mark.parametrize("name", RULE_CASES)
def test_each_rule_applies_where_it_should_and_not_to_a_plain_film(name):
    severity, changes, machine = RULE_CASES[name]
    message = rules_of(replace(H200, **machine), **changes)[name]
    assert message.severity == severity
    assert message.text
    assert message.remedy
    assert "{" not in message.text
    assert name not in rules_of()


def test_every_rule_has_a_case_and_a_plain_film_has_no_message():
    assert [rule.name for rule in RULES] == list(RULE_CASES)
    assert rules_of() == {}


def test_text_and_json_say_the_same():
    request = replace(PLAIN, prompts=("walks", "walks", "runs", "sits"), cfg=2.0)
    estimate, messages = resolve(request, replace(H200, vram=12 * GIB))
    text, data = as_text(estimate, messages), json.loads(as_json(estimate, messages))
    assert text.startswith("ERROR: cfg is 2")
    assert "145 frames of 640x640, 4.83 s" in text
    assert "section 2, 2.43 s to 3.63 s, frames 73 to 108, made as 2: runs" in text
    assert data["frames"] == 145
    assert data["sections"][2]["prompt"] == "runs"
    assert data["streamed_per_forward"] == estimate.streamed
    assert data["messages"][0]["rule"] == "cfg and negative"


def test_durations_for_people():
    assert [duration(seconds) for seconds in (42, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 5 min"]


def test_cards_are_known_by_their_drivers_names():
    assert find_card("NVIDIA H200").tflops == 650
    assert find_card("NVIDIA GeForce RTX 4090").vram == 24 * GIB
    for name in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA L4", "cpu"):
        assert find_card(name) is None, name
