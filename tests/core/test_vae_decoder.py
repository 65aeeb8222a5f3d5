"""The streaming decoder on small weights, beside the architecture written out plainly over the whole film."""

import weakref

import pytest
import torch
from framepack_pack.framepack_core.affine_norm import use_affine_norms
from framepack_pack.framepack_core.tiny_checkpoint import VaeSize, draw, vae_shapes
from framepack_pack.framepack_core.vae import carried, layers
from framepack_pack.framepack_core.vae import decoder as decoder_module
from framepack_pack.framepack_core.vae.memory import bytes_needed
from framepack_pack.framepack_core.vae.weights import UnknownVaeError, build_decoder
from torch import nn
from torch.nn import functional as F

SIZE, FULL = VaeSize((32, 32, 32, 64), 1, 16), VaeSize((128, 256, 512, 512), 2, 16)
CPU = torch.device("cpu")


class Holder(nn.Module):
    """Modules by the released names, as the host builds them, without their forward."""

    def __init__(self, dtype=torch.float64, size=SIZE):
        super().__init__()
        shapes = vae_shapes(size)
        for key, shape in shapes.items():
            owner, name = key.rsplit(".", 1)
            if name == "weight":
                self.put(owner, nn.GroupNorm(32, shape[0], eps=1e-6) if len(shape) == 1 else convolution(shape))
        if size is SIZE:
            self.load_state_dict({key: draw(key, shape, "test") for key, shape in shapes.items()})
        self.to(dtype).requires_grad_(False)

    def put(self, name, module):
        *parents, last = name.split(".")
        place = self
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.add_module(last, module)


def convolution(shape):
    return nn.Conv3d(shape[1], shape[0], shape[2:])


class Whole:
    """The decoder of Holder over all latents at once, norms over all frames."""

    def __init__(self, model):
        self.modules = dict(model.named_modules())

    def __call__(self, latents):
        x = self.causal("decoder.conv_in", self.modules["post_quant_conv"](latents))
        x = self.block("decoder.mid.block_1", x)
        x = self.attention("decoder.mid.attn_1", x)
        x = self.block("decoder.mid.block_2", x)
        for level in (3, 2, 1, 0):
            for number in range(SIZE.blocks + 1):
                x = self.block(f"decoder.up.{level}.block.{number}", x)
            if level:
                x = self.causal(f"decoder.up.{level}.upsample.conv", self.doubled(x, in_time=level < 3))
        x = self.causal("decoder.conv_out", F.silu(self.modules["decoder.norm_out"](x)))
        return x[0].permute(1, 2, 3, 0)

    def causal(self, name, x):
        return self.modules[f"{name}.conv"](F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"))

    def block(self, name, x):
        inner = self.causal(f"{name}.conv1", F.silu(self.modules[f"{name}.norm1"](x)))
        inner = self.causal(f"{name}.conv2", F.silu(self.modules[f"{name}.norm2"](inner)))
        shortcut = self.modules.get(f"{name}.nin_shortcut.conv")
        return inner + (x if shortcut is None else shortcut(x))

    def attention(self, name, x):
        normed = self.modules[f"{name}.norm"](x)
        q, k, v = (self.modules[f"{name}.{part}"](normed)[0].flatten(1).T for part in "qkv")
        mixed = torch.softmax(q @ k.T * q.shape[1] ** -0.5, -1) @ v
        return x + self.modules[f"{name}.proj_out"](mixed.T.view(x.shape))

    def doubled(self, x, in_time):
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, 2)], 2) if in_time else x


@pytest.fixture(scope="module")
def model():
    return Holder()


@pytest.fixture(scope="module")
def affine():
    model = Holder()
    use_affine_norms(model)
    return model


def latents_of(count, height=2, width=3):
    return torch.randn(1, 16, count, height, width, generator=torch.manual_seed(count), dtype=torch.float64)


def film(model, latents, **pieces):
    return torch.cat(list(build_decoder(model, CPU, torch.float64).stream(latents, **pieces)))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_one_piece_is_the_whole_film(model, count):
    latents = latents_of(count)
    expected = Whole(model)(latents)
    got = film(model, latents, piece=count, middle=count)
    assert got.shape == (4 * count - 3, 16, 24, 3)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)  # scale and shift of norms are float32


@pytest.mark.parametrize("piece", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_norms_without_statistics_do_not_see_the_pieces(affine, count, piece):
    latents = latents_of(count)
    torch.testing.assert_close(film(affine, latents, piece=piece), Whole(affine)(latents), atol=1e-12, rtol=1e-9)


def test_blocks_of_frames_are_not_seen(model, monkeypatch):
    latents = latents_of(4)
    expected = film(model, latents)
    monkeypatch.setattr(decoder_module, "BLOCK_BYTES", 1)
    torch.testing.assert_close(film(model, latents), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 2**28])
def test_frames_that_wait_in_host_memory_come_back(model, monkeypatch, block_bytes):
    latents = latents_of(6)
    monkeypatch.setattr(decoder_module, "BLOCK_BYTES", block_bytes)
    expected = film(model, latents)
    monkeypatch.setattr(carried, "SMALL", 40_000)  # some of the layers, not all
    moved, copied = [], carried.Carried._copied
    monkeypatch.setattr(
        carried.Carried, "_copied", lambda *arguments: moved.append(arguments[1].shape) or copied(*arguments)
    )
    assert torch.equal(film(model, latents), expected)
    assert len(set(moved)) == 3, "of the three larger levels"
    assert len(moved) > 20


def test_a_block_lets_go_of_its_input_before_its_first_convolution(model, monkeypatch):
    decoder = build_decoder(model, CPU, torch.float64)
    block = next(block for level in decoder.levels for block in level.blocks if block.shortcut is not None)
    x = torch.randn(2, 4, 4, block.shortcut[0].shape[1], dtype=torch.float64)
    known, alive, convolve = weakref.ref(x), [], layers.convolve
    monkeypatch.setattr(
        layers, "convolve", lambda *given, **named: alive.append(known() is not None) or convolve(*given, **named)
    )
    blocks = [x]
    del x
    block(blocks, carried.Carried(CPU))
    assert alive == [False, False]


def test_pieces_differ_where_norms_have_statistics(model):
    latents = latents_of(4)
    assert float((film(model, latents, piece=1) - film(model, latents, piece=2)).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("piece", "middle", "expected"), [(2, 20, [5, 8, 4]), (1, 20, [1, 4, 4, 4, 4]), (2, 3, [5, 8, 4])]
)
def test_frames_come_piece_by_piece(model, piece, middle, expected):
    pieces = build_decoder(model, CPU, torch.float64).stream(latents_of(5), piece, middle)
    assert [frames.shape[0] for frames in pieces] == expected


def test_what_comes_later_is_not_seen(model):
    """The middle's attention aside, whose pieces end before the change."""
    latents, pieces = latents_of(6), {"piece": 2, "middle": 2}
    expected = film(model, latents, **pieces)
    latents[:, :, 4:] = 0
    got = film(model, latents, **pieces)
    assert torch.equal(got[:13], expected[:13])
    assert not torch.equal(got[13:], expected[13:])


def test_a_film_leaves_nothing_for_the_next(model):
    decoder, latents = build_decoder(model, CPU, torch.float64), latents_of(3)
    first = torch.cat(list(decoder.stream(latents)))
    next(decoder.stream(latents_of(4)))
    assert torch.equal(torch.cat(list(decoder.stream(latents))), first)


def test_single_precision_is_near_double(model):
    latents = latents_of(3)
    single = torch.cat(list(build_decoder(model, CPU, torch.float32).stream(latents)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), film(model, latents), atol=1e-5, rtol=1e-4)


def test_other_models_are_refused(model):
    def refuse(change, message):
        other = Holder()
        change(other)
        with pytest.raises(UnknownVaeError, match=message):
            build_decoder(other, CPU, torch.float64)

    refuse(lambda m: m.decoder.mid.attn_1.register_forward_hook(lambda *_: None), "decoder.mid.attn_1 has hooks")
    refuse(lambda m: m.put("decoder.mid.block_3", nn.Linear(2, 2)), "decoder.mid.block_3.bias has no place")
    refuse(lambda m: m.put("decoder.norm_out", nn.LayerNorm(32)), "decoder.norm_out is LayerNorm, not a group norm")
    refuse(lambda m: m.put("decoder.conv_in.conv", nn.Conv3d(16, 64, 1)), r"conv.weight is \(64, 16, 1, 1, 1\)")
    refuse(lambda m: m.decoder.mid.add_module("attn_1", nn.Identity()), "decoder.mid.attn_1.norm is NoneType")


def test_memory_is_that_of_the_full_size_at_640():
    """The sum in decoder.py's docstring; pieces of half the length need half of the frames at the largest level."""
    with torch.device("meta"):
        decoder = build_decoder(Holder(torch.bfloat16, FULL), torch.device("meta"), torch.bfloat16)

    def need(piece):
        return bytes_needed(decoder, 80, 80, piece, 20)

    assert 3.8e9 < need(2) < 3.9e9
    assert need(2) - need(1) == pytest.approx(4 * 640 * 640 * (256 * 2 + 2 * 3 * 4))
