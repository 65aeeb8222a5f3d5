"""8-bit products against the ones they stand for."""

import pytest
import torch
from framepack_pack.framepack_core.model import fp8
from framepack_pack.framepack_core.model.fp8 import (
    FP8,
    Heads,
    Rows,
    dequantise_rows,
    fits_fp8,
    fp8_linear,
    fp8_product,
    quantise_heads,
    quantise_heads_eager,
    quantise_rows,
    quantise_rows_eager,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def relative_l2(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 64, generator=generator) * torch.logspace(-3, 3, 33).unsqueeze(1)
    return x, torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator)


def test_every_row_reaches_448_and_comes_back(operands):
    rows = quantise_rows(operands[0])
    assert rows.values.dtype == FP8
    assert (rows.values.float().abs().amax(1) == 448).all()
    back = dequantise_rows(rows, torch.float32)
    # e4m3 has 3 bits of mantissa: half a step is 1/16 of the value, or of the smallest normal number
    assert ((back - operands[0]).abs() <= operands[0].abs() / 16 + rows.scales * 2**-10).all()


def test_rows_of_zeros_stay_zeros():
    assert not dequantise_rows(quantise_rows(torch.zeros(2, 16)), torch.float32).any()


def test_scales_of_rows_keep_small_rows(operands):
    """A tensor-wise scale loses the rows a million times smaller than the largest; row-wise does not."""
    x, weight, _ = operands
    expected = x @ weight.T
    rowwise = fp8_linear(x, quantise_rows(weight), None, torch.float32, "dequantised")
    assert relative_l2(rowwise[:1], expected[:1]) < 0.05
    scale = x.abs().max() / 448
    assert relative_l2((x / scale).to(FP8).float()[:1] * scale @ weight.T, expected[:1]) > 0.5


def test_tensorwise_product_equals_the_rowwise_formula(operands):
    """torch multiplies in 8 bit tensor-wise on a CPU too."""
    x, weight, bias = operands
    rows, weights = quantise_rows(x), quantise_rows(weight)
    expected = dequantise_rows(rows, torch.float32) @ dequantise_rows(weights, torch.float32).T + bias
    got = fp8_linear(x, weights, bias, torch.bfloat16, "tensorwise")
    assert got.dtype == torch.bfloat16
    assert relative_l2(got, expected) < 5e-3
    assert torch.equal(got, fp8_linear(rows, weights, bias, torch.bfloat16, "tensorwise")), "rows may be shared"


def test_rowwise_hands_both_scales_to_the_kernel(operands, monkeypatch):
    """The row-wise kernel needs a card; here its definition stands in for it."""
    x, weight, bias = operands

    def scaled_mm(x, weight, x_scale, weight_scale, bias, out_dtype, use_fast_accum):
        assert x_scale.shape == (33, 1)
        assert weight_scale.shape == (1, 48)
        return ((x.float() * x_scale) @ (weight.float() * weight_scale) + bias.float()).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    weights = quantise_rows(weight)
    got = fp8_linear(x, weights, bias, torch.bfloat16, "rowwise")
    expected = dequantise_rows(quantise_rows(x), torch.float32) @ dequantise_rows(weights, torch.float32).T + bias
    assert relative_l2(got, expected) < 5e-3


def test_dequantised_product_is_the_plain_one(operands):
    x, weight, bias = operands
    weights = quantise_rows(weight)
    expected = torch.nn.functional.linear(x, dequantise_rows(weights, torch.float32), bias)
    assert torch.equal(fp8_linear(x, weights, bias, torch.float32, "dequantised"), expected)


def test_a_cpu_computes_dequantised():
    assert fp8_product(torch.device("cpu")) == "dequantised"


def test_shapes_for_tensor_cores():
    assert fits_fp8(torch.empty(32, 48, device="meta"))
    assert not fits_fp8(torch.empty(32, 40, device="meta"))
    assert not fits_fp8(torch.empty(32, 48, 2, 2, device="meta"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (5, 48), (3, 100), (2, 4097)])
def test_kernel_equals_its_twin(rows, columns, dtype):
    """On the card where there is one, else in Triton's interpreter."""
    pytest.importorskip("triton")
    from framepack_pack.framepack_core.kernels import fp8_rows

    wide = torch.randn(rows, columns + 7, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    for x in (wide[:, :columns], wide[:, :columns].contiguous(), torch.zeros(rows, columns, dtype=dtype).to(DEVICE)):
        assert_same_8_bit(Rows(*fp8_rows.quantise(x)), quantise_rows_eager(x))


def assert_same_8_bit(got: Rows | Heads, expected: Rows | Heads) -> None:
    torch.testing.assert_close(got.scales, expected.scales, rtol=1e-6, atol=0)
    values, twin = got.values.float(), expected.values.float()
    # Triton 3.6's interpreter rounds ties up, drops subnormals, and forgets the carry to a power of two
    carried = (torch.frexp(twin).mantissa.abs() == 0.5) & (values * 2 == twin)
    one_step = (values - twin).abs() <= twin.abs() / 8 + 2**-9
    assert (carried | one_step).all()
    assert float((values != twin).float().mean()) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("length", "heads", "dim"), [(1, 1, 16), (63, 2, 16), (65, 3, 24), (130, 2, 128)])
def test_kernel_of_heads_equals_its_twin(length, heads, dim, dtype):
    """Heads of a joint buffer, as attention gets them, one of them of zeros; before and after are other tokens."""
    pytest.importorskip("triton")
    from framepack_pack.framepack_core.kernels import fp8_heads

    joint = torch.randn(2, length + 2, 3, heads, dim, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    joint *= torch.logspace(-3, 3, heads).to(DEVICE, dtype)[:, None]
    joint[1, :, 0, 0] = 0.0
    joint[:, [0, -1]] = 1e6
    for projected in range(3):
        x = joint[:, 1:-1, projected].transpose(1, 2)  # [B, H, L, d]
        assert_same_8_bit(Heads(*fp8_heads.quantise(x)), quantise_heads_eager(x))


def test_every_head_reaches_448_and_comes_back():
    x = torch.randn(2, 3, 33, 16, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([0.01, 1.0, 100.0]).view(1, 3, 1, 1)
    heads = quantise_heads(x)
    assert heads.values.dtype == FP8
    assert (heads.values.float().abs().amax((2, 3)) == 448).all()
    scales = heads.scales[..., None, None]
    assert ((heads.values.float() * scales - x).abs() <= x.abs() / 16 + scales * 2**-10).all()


def test_the_kernel_leaves_cpu_tensors_to_the_twin(operands):
    assert torch.equal(quantise_rows(operands[0]).values.float(), quantise_rows_eager(operands[0]).values.float())
    assert isinstance(quantise_rows(operands[0]), Rows)


def test_some_rows_at_a_time_are_quantised_as_all_at_once(monkeypatch):
    x = torch.randn(11, 32)
    whole = quantise_rows_eager(x)
    monkeypatch.setattr(fp8, "ROWS", 4)
    few = quantise_rows_eager(x)
    assert torch.equal(few.values.float(), whole.values.float())
    assert torch.equal(few.scales, whole.scales)
