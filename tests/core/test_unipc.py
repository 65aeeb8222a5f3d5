"""Golden values from the original's code: a scalar flow with a known denoiser."""

import pytest
import torch
from framepack_pack.framepack_core.schedule import flow_sigmas
from framepack_pack.framepack_core.unipc import sample_flow_unipc

GOLDEN = {
    (1, "bh1"): 0.7, (2, "bh1"): 0.7355330, (3, "bh1"): 0.7707003, (4, "bh1"): 0.8047690, (5, "bh1"): 0.8373774,
    (10, "bh1"): 0.9711059, (25, "bh1"): 1.1379483, (3, "bh2"): 0.7706656, (4, "bh2"): 0.8047680, (5, "bh2"): 0.8373771,
}  # fmt: skip


def denoise(x, sigma):
    """Posterior mean of a Gaussian with mean 0.7 and variance 0.25."""
    mean, variance, a = 0.7, 0.25, 1 - sigma.view(-1, 1)
    return mean + a * variance / (a**2 * variance + sigma.view(-1, 1) ** 2) * (x - a * mean)


@pytest.mark.parametrize(("steps", "solver"), GOLDEN)
def test_golden(steps, solver):
    result = sample_flow_unipc(denoise, torch.ones(1, 1), flow_sigmas(steps, 7.0), solver=solver)
    assert abs(result.item() - GOLDEN[steps, solver]) <= 1e-6


def test_inputs_of_the_model():
    seen = []

    def watched(x, sigma):
        seen.append(x.item())
        return denoise(x, sigma)

    sample_flow_unipc(watched, torch.ones(1, 1), flow_sigmas(5, 7.0))
    torch.testing.assert_close(seen, [1.0, 0.989655, 0.974943, 0.951775, 0.916455], atol=1e-6, rtol=0)


def test_evaluates_once_a_step_and_returns_the_last_denoised():
    reported = []
    result = sample_flow_unipc(denoise, torch.ones(2, 1), flow_sigmas(6, 7.0), callback=reported.append)
    assert [report["i"] for report in reported] == list(range(6))
    assert reported[-1]["sigma"] > 0, "sigma 0 is never evaluated"
    assert torch.equal(result, reported[-1]["denoised"])


def test_samples_do_not_touch_each_other():
    both = sample_flow_unipc(denoise, torch.tensor([[1.0], [-0.5]]), flow_sigmas(8, 7.0))
    alone = sample_flow_unipc(denoise, torch.tensor([[-0.5]]), flow_sigmas(8, 7.0))
    assert torch.equal(both[1:], alone)


def test_extra_arguments_reach_the_model():
    def needs(x, sigma, offset):
        return denoise(x, sigma) + offset

    sigmas = flow_sigmas(1, 7.0)
    result = sample_flow_unipc(needs, torch.ones(1, 1), sigmas, extra_args={"offset": 2.0})
    assert abs(result.item() - 2.7) < 1e-6


def test_no_steps_give_the_state_back():
    x = torch.ones(1, 1)
    assert sample_flow_unipc(denoise, x, torch.tensor([1.0])) is x


def test_sigmas_of_the_caller_stay():
    sigmas = flow_sigmas(4, 7.0)
    kept = sigmas.clone()
    sample_flow_unipc(denoise, torch.ones(1, 1), sigmas)
    assert torch.equal(sigmas, kept)
