"""The eager twins write where they are told, and the choice between them and the kernels."""

import pytest
import torch
from framepack_pack.framepack_core.kernels.device import kernels_run_on
from framepack_pack.framepack_core.model import elementwise
from framepack_pack.framepack_core.model.rope import Rotation, rotate
from torch.nn import functional as F

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


def test_joined_gelu_leaves_what_stands_beside(monkeypatch):
    monkeypatch.setattr(elementwise, "TOKENS", 2)
    left, x = torch.randn(1, 3, 4), torch.randn(1, 3, 8)
    joined = elementwise.joined_gelu(left, x)
    assert torch.equal(joined[..., :4], left)
    assert torch.equal(joined[..., 4:], F.gelu(x, approximate="tanh"))


def test_normed_rotation_is_the_norm_then_the_rotation_of_the_blocks():
    q, weight = torch.randn(2, 7, 3, 4, 16, dtype=torch.bfloat16)[:, :, 0], torch.randn(16, dtype=torch.bfloat16)
    angle = torch.randn(1, 1, 5, 8)
    rotation = Rotation(angle.cos(), angle.sin())
    expected = rotate(F.rms_norm(q.transpose(1, 2), (16,), weight, 1e-6), rotation).transpose(1, 2)
    assert torch.equal(elementwise.normed_rotation(q, weight, rotation, 1e-6), expected)
    assert elementwise.normed_rotation(q, weight, rotation, 1e-6, out=q) is q
    assert torch.equal(q, expected)


@pytest.mark.parametrize("turned", [0, 4, 5, 11])
def test_some_tokens_at_a_time_are_normed_and_turned_as_all_at_once(monkeypatch, turned):
    x, weight, angle = torch.randn(2, 11, 3, 16), torch.randn(16), torch.randn(1, 1, turned, 8)
    rotation = Rotation(angle.cos(), angle.sin())
    whole = elementwise.eager_normed_rotation(x, weight, rotation, 1e-6)
    monkeypatch.setattr(elementwise, "TOKENS", 4)
    assert torch.equal(elementwise.eager_normed_rotation(x, weight, rotation, 1e-6), whole)
    assert torch.equal(elementwise.eager_normed_rotation(x, weight, rotation, 1e-6, out=x), whole)


def test_gated_norm_gives_the_sum_and_its_norm():
    residual, branch = torch.randn(2, 2, 5, 8).unbind()
    gate, shift, scale = torch.randn(3, 2, 1, 8).unbind()
    total, normed = elementwise.gated_norm(residual, branch, gate, shift, scale)
    assert torch.equal(total, residual + branch * gate)
    assert torch.equal(normed, F.layer_norm(total, (8,), eps=1e-6) * (1 + scale) + shift)


def test_gradients_flow_through_every_function():
    x = torch.randn(1, 5, 8, requires_grad=True)
    vector, angle = torch.randn(1, 1, 8), torch.randn(1, 1, 5, 2)
    total, normed = elementwise.gated_norm(
        x, elementwise.joined_gelu(x[..., :4], elementwise.gelu(x[..., 4:])), vector, vector, vector
    )
    heads = elementwise.normed_rotation(
        normed.unflatten(-1, (2, 4)), torch.ones(4), Rotation(angle.cos(), angle.sin()), 1e-6
    )
    (heads.sum() + total.sum()).backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


def test_kernels_do_not_run_on_the_cpu():
    assert not kernels_run_on(torch.device("cpu"), torch.bfloat16)


@NEEDS_GPU
def test_kernels_are_used_on_a_card_unless_something_stands_against_it():
    x = torch.randn(1, 64, 256, device="cuda", dtype=torch.bfloat16)
    vector = torch.randn(1, 1, 256, device="cuda", dtype=torch.bfloat16)
    fused, eager = elementwise.modulated_norm(x, vector, vector), elementwise.eager_modulated_norm(x, vector, vector)
    assert not torch.equal(fused, eager)  # they round differently
    with elementwise.unfused():
        assert torch.equal(elementwise.modulated_norm(x, vector, vector), eager)
    assert torch.equal(elementwise.modulated_norm(x, vector, vector), fused)
    assert torch.equal(elementwise.modulated_norm(x.requires_grad_(), vector, vector), eager)
