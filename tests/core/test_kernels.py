"""The fused kernels beside their eager twins: on the GPU where there is one, else in Triton's interpreter."""

import os

import pytest
import torch
from framepack_pack.framepack_core.model import elementwise
from framepack_pack.framepack_core.model.rope import Rotation

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch on Linux x86_64")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from framepack_pack.framepack_core.kernels import heads, rows
from framepack_pack.framepack_core.kernels.gelu import gelu, joined_gelu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = elementwise.NORM_EPS
SIZES = [(1, 1, 16), (1, 9, 48), (2, 7, 100), (1, 3, 3072)]  # B, L, D: none, one or many of ROWS, padded blocks
INTERPRETED_BF16 = 2**-7  # the interpreter cuts bfloat16 off instead of rounding it to the nearest
ROUNDING = {torch.bfloat16: INTERPRETED_BF16 if DEVICE == "cpu" else 2**-8, torch.float16: 2**-11, torch.float32: 2e-6}
DTYPES = list(ROUNDING)


def random(*shape, dtype=torch.float32, offset=0.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) + offset).to(DEVICE, dtype)


def strided(batch, length, width, dtype, offset=0.0):
    """[B, L, D] as the middle of a wider buffer, with tokens before and after."""
    return random(batch, length + 3, width + 32, dtype=dtype, offset=offset)[:, 2:-1, 16:-16]


def error(got, exact):
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def check(fused, twin, inputs):
    """One rounding away from the exact value everywhere, and on the whole no farther from it than the twin."""
    got, expected = fused(*inputs), twin(*inputs)
    exact = twin(*[x.double() if isinstance(x, torch.Tensor) else x for x in inputs])
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.double(), exact, atol=4e-6, rtol=ROUNDING[got.dtype])
    many = got.numel() > 1000  # enough for errors of single elements to average out
    if many and got.dtype != torch.float32 and ROUNDING[got.dtype] != INTERPRETED_BF16:
        assert error(got, exact) <= 1.01 * error(expected, exact)


def norm_inputs(size, dtype):
    batch, _, width = size
    modulation = random(batch, 1, 6 * width, dtype=dtype)  # chunks of it have a sample stride of their own
    return strided(*size, dtype, offset=3.0), *modulation.chunk(6, dim=-1)[1:3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_modulated_norm(size, dtype):
    check(lambda *inputs: rows.modulated_norm(*inputs, EPS), elementwise.eager_modulated_norm, norm_inputs(size, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_gated_sum(size, dtype):
    x, gate, _ = norm_inputs(size, dtype)
    branch = random(*size, dtype=dtype)
    check(rows.gated_sum, elementwise.eager_gated_sum, (x, branch, gate))
    buffer = torch.zeros(size[0], size[1] + 2, size[2], dtype=dtype, device=DEVICE)
    assert torch.equal(rows.gated_sum(x, branch, gate, buffer[:, 1:-1]), rows.gated_sum(x, branch, gate))
    assert not buffer[:, [0, -1]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_gated_norm_is_both_one_after_the_other(size, dtype):
    x, gate, shift = norm_inputs(size, dtype)
    branch, scale = strided(*size, dtype, offset=-1.0), gate + 0.5
    total, normed = rows.gated_norm(x, branch, gate, shift, scale, EPS)
    assert torch.equal(total, rows.gated_sum(x, branch, gate))
    assert torch.equal(normed, rows.modulated_norm(total, shift, scale, EPS))


def test_one_vector_steers_all_samples():
    x, shift, scale = norm_inputs((2, 7, 48), torch.float32)
    shift, scale = shift[:1], scale[:1]
    check(lambda *inputs: rows.modulated_norm(*inputs, EPS), elementwise.eager_modulated_norm, (x, shift, scale))


def test_a_row_is_normed_about_a_mean_that_dwarfs_its_spread():
    x = random(1, 5, 3072, offset=1000.0)
    shift = scale = torch.zeros(1, 1, 3072, device=DEVICE)
    got = rows.modulated_norm(x, shift, scale, EPS)
    exact = elementwise.eager_modulated_norm(x.double(), shift.double(), scale.double())
    assert error(got, exact) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 3, 16), (2, 5, 100), (1, 2, 12288)])
def test_gelu(size, dtype):
    check(gelu, elementwise.eager_gelu, (strided(*size, dtype) * 3,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("beside", "size"), [(16, (1, 3, 16)), (200, (2, 5, 100)), (3072, (1, 2, 12288))])
def test_joined_gelu_copies_what_stands_beside(beside, size, dtype):
    left, x = strided(*size[:2], beside, dtype), strided(*size, dtype) * 3
    got = joined_gelu(left, x)
    assert torch.equal(got[..., :beside], left)
    assert torch.equal(got[..., beside:], gelu(x))
    check(joined_gelu, elementwise.eager_joined_gelu, (left, x))


def test_gelu_of_extremes():
    x = torch.tensor([-1e30, -100.0, -9.0, -0.0, 0.0, 9.0, 100.0, 1e30], device=DEVICE).view(1, 1, -1)
    torch.testing.assert_close(gelu(x), x.clamp(min=0), atol=1e-6, rtol=0)


def turn(length, dim):
    angle = random(1, 1, length, dim // 2)
    return Rotation(angle.cos() * 0.5, angle.sin())  # averaged tables are not of unit length


def rotated(x, weight, rotation, out=None):
    cos, sin = (None, None) if rotation is None else (rotation.cos[0, 0], rotation.sin[0, 0])
    return heads.normed_rotation(x, weight, cos, sin, EPS, out)


def twin(x, weight, rotation):
    if rotation is not None and x.dtype == torch.float64:  # rotate computes in float32
        length = rotation.cos.shape[2]
        normed = elementwise.eager_normed_rotation(x, weight, None, EPS)
        pairs = torch.view_as_complex(normed[:, :length].unflatten(-1, (-1, 2)).contiguous())
        pairs = pairs * torch.complex(*(table.double().transpose(1, 2) for table in rotation))
        return torch.cat([torch.view_as_real(pairs).flatten(-2), normed[:, length:]], dim=1)
    return elementwise.eager_normed_rotation(x, weight, rotation, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [0, 4, 7, None])
@pytest.mark.parametrize(("batch", "count", "dim"), [(1, 24, 128), (2, 3, 12)])
def test_normed_rotation_of_a_slice_of_a_joint_buffer(batch, count, dim, turned, dtype):
    joint = random(batch, 7, 3, count, dim, dtype=dtype)
    rotation = None if turned is None else turn(turned, dim)
    check(rotated, twin, (joint[:, :, 1], random(dim, dtype=dtype, offset=1.0), rotation))


def test_normed_rotation_in_place_leaves_the_neighbours():
    joint, weight, rotation = random(1, 7, 3, 24, 128), random(128), turn(5, 128)
    before = joint.clone()
    keys = joint[:, :, 1]
    expected = twin(keys, weight, rotation)
    assert rotated(keys, weight, rotation, out=keys) is keys
    torch.testing.assert_close(keys, expected)
    assert torch.equal(joint[:, :, ::2], before[:, :, ::2])


def test_normed_rotation_into_a_head_major_buffer():
    x, weight, rotation = random(2, 7, 4, 16), random(16), turn(7, 16)
    out = torch.zeros(2, 4, 9, 16, device=DEVICE)
    rotated(x, weight, rotation, out=out[:, :, 1:-1].transpose(1, 2))
    torch.testing.assert_close(out[:, :, 1:-1].transpose(1, 2), twin(x, weight, rotation))
    assert not out[:, :, 0].any()
    assert not out[:, :, -1].any()
