"""The decoder's kernels beside their eager twins: on the GPU where there is one, else in Triton's interpreter."""

import os

import pytest
import torch
from framepack_pack.framepack_core.vae.convolution import Taps, eager_convolve
from framepack_pack.framepack_core.vae.elementwise import eager_channel_sums, eager_padded

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch on Linux x86_64")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from framepack_pack.framepack_core.kernels import norm
from framepack_pack.framepack_core.kernels.convolution import Launch, convolve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]  # interpreted, bfloat16 has no product
POINTERS, DESCRIPTORS = Launch(32, 32, 16, 4, 2), Launch(32, 32, 16, 4, 2, descriptors=True)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def weights(taps, channels, columns, dtype):
    weight = random(*taps, channels, columns) / (channels * 27) ** 0.5
    return Taps(weight.to(dtype), random(columns, dtype=dtype))


def fused(frames, taps, out, start=(0, 0), add=False, launch=None):
    weight = taps.weight
    return convolve(
        frames,
        weight.view(-1, weight.shape[-1]),
        taps.bias,
        out,
        tuple(weight.shape[:3]),
        start,
        out if add else None,
        launch=launch,
    )


def near(got, expected):
    torch.testing.assert_close(got, expected, atol=TOLERANCE[got.dtype], rtol=TOLERANCE[got.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("size", "taps", "launch"),
    [
        ((1, 5, 7, 16, 16), (3, 3, 3), POINTERS),
        ((2, 4, 6, 40, 20), (3, 3, 3), POINTERS),  # channels that fill no block
        ((2, 4, 6, 64, 32), (3, 3, 3), DESCRIPTORS),
        ((3, 5, 5, 32, 9), (1, 3, 3), POINTERS),
        ((2, 9, 5, 24, 48), (2, 2, 2), POINTERS),
        ((2, 3, 3, 16, 8), (3, 3, 3), None),
    ],
)
@pytest.mark.parametrize("add", [False, True])
def test_convolution(size, taps, launch, add, dtype):
    count, height, width, channels, columns = size
    frames = random(count + taps[0] - 1, height + taps[1] - 1, width + taps[2] - 1, channels, dtype=dtype)
    given = random(count, height, width, columns, dtype=dtype)
    weight = weights(taps, channels, columns, dtype)
    got = fused(frames, weight, given.clone(), add=add, launch=launch)
    exact = Taps(weight.weight.double(), weight.bias.double())
    near(got, eager_convolve(frames.double(), exact, given.double(), add=add).to(dtype))


@pytest.mark.parametrize("launch", [POINTERS, DESCRIPTORS])
def test_convolution_of_a_part_into_every_other_pixel_leaves_the_rest(launch):
    frames, taps = random(3, 7, 9, 32), weights((2, 2, 2), 32, 16, torch.float32)
    out = torch.full((4, 10, 14, 16), 7.0, device=DEVICE)
    expected = out.double()
    fused(frames, taps, out[1::2, 1::2, ::2], start=(1, 0), launch=launch)
    exact = Taps(taps.weight.double(), taps.bias.double())  # a card's float32 products may be TF32
    eager_convolve(frames.double(), exact, expected[1::2, 1::2, ::2], start=(1, 0))
    near(out, expected.float())
    assert bool((out[::2] == 7).all())


def test_convolution_into_wider_numbers():
    frames, taps = random(2, 5, 5, 32, dtype=torch.float16), weights((1, 3, 3), 32, 9, torch.float16)
    got = fused(frames, taps, torch.empty(2, 3, 3, 9, device=DEVICE))
    exact = Taps(taps.weight.float(), taps.bias.float())
    torch.testing.assert_close(got, eager_convolve(frames.float(), exact, torch.empty_like(got)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1, 8), (2, 9, 31, 48), (1, 3, 5, 512)])
def test_channel_sums(size):
    x = random(*size)
    for got, expected in zip(norm.channel_sums(x.view(-1, size[-1])), eager_channel_sums(x), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("size", [(1, 1, 1, 8), (2, 5, 7, 48)])
@pytest.mark.parametrize("normed", [False, True])
def test_padded(size, normed, dtype):
    x = random(*size, dtype=dtype)
    vectors = (random(size[-1]) + 1, random(size[-1])) if normed else None
    frames = torch.zeros(size[0] + 1, size[1] + 2, size[2] + 2, size[3], device=DEVICE, dtype=dtype)
    norm.padded(x, vectors, frames[1:])
    near(frames[1:], eager_padded(x, vectors, torch.empty_like(frames[1:])))
    assert not frames[0].any(), "the frame before is not touched"
