"""Golden values from the original's code."""

import math

import pytest
import torch
from framepack_pack.framepack_core.history import append_section, new_history
from framepack_pack.framepack_core.schedule import flow_shift, flow_sigmas, section_noise, section_sigmas
from framepack_pack.framepack_core.section_plan import plan_backward

SIGMAS_25 = [
    1, 0.994083, 0.987730, 0.980892, 0.973510, 0.965517, 0.956835, 0.947368, 0.937008, 0.925620, 0.913043, 0.899083,
    0.883495, 0.865979, 0.846154, 0.823529, 0.797468, 0.767123, 0.731343, 0.688525, 0.636364, 0.571429, 0.488372,
    0.378378, 0.225806, 0,
]  # fmt: skip
BF16_TIMESTEPS = [
    1000, 996, 988, 980, 972, 964, 956, 948, 936, 924, 912, 900, 884, 864, 848, 824, 796, 768, 732, 688, 636, 572,
    488, 378, 226,
]  # fmt: skip


def test_25_sigmas():
    sigmas = flow_sigmas(25, 7.0)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, torch.tensor(SIGMAS_25), atol=6e-7, rtol=0)
    assert sigmas[-1] == 0


def test_bf16_timesteps_and_guidance():
    assert (flow_sigmas(25, 7.0)[:-1] * 1000).to(torch.bfloat16).int().tolist() == BF16_TIMESTEPS
    scales = torch.tensor([10.0, 9.0, 6.0, 3.5]) * 1000
    assert scales.to(torch.bfloat16).int().tolist() == [9984, 9024, 6016, 3504]


@pytest.mark.parametrize(
    ("tokens", "mu"), [(3600, 1.0660), (5760, 1.4317), (1520, 0.7140), (8798, math.log(7)), (14040, math.log(7))]
)
def test_shift_follows_the_window_and_stops_at_7(tokens, mu):
    assert abs(flow_shift(1, 4, tokens) - math.exp(mu)) < 1e-3


def test_shift_is_of_the_generated_window_alone():
    history = new_history(plan_backward(2, 9), 0, 320, 320)
    assert flow_shift(9, 40, 40) < 6, "below the cap, so that a wrong number of frames shows"
    assert torch.equal(section_sigmas(history, 25), flow_sigmas(25, flow_shift(9, 40, 40)))
    assert torch.equal(section_sigmas(history, 25, 3.0), flow_sigmas(25, 3.0))


def test_one_noise_stream_serves_the_film():
    history = new_history(plan_backward(3, 2), seed=5, width=32, height=16)
    generator = torch.Generator("cpu").manual_seed(5)
    for _ in range(3):
        assert torch.equal(section_noise(history), torch.randn(1, 16, 2, 2, 4, generator=generator))
        history = append_section(history, torch.zeros(1, 16, 2, 2, 4))


@pytest.mark.parametrize(("steps", "shift", "message"), [(0, 7.0, "at least 1 step"), (25, -1.0, "above 0")])
def test_bad_schedules_are_refused(steps, shift, message):
    with pytest.raises(ValueError, match=message):
        flow_sigmas(steps, shift)
