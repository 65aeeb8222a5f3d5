"""Attention in 8 bit as a patch of MODEL. A stand-in for FlashAttention-3, whose own kernels need a Hopper card."""

import types

import comfy.ldm.modules.attention as core_attention
import pytest
import torch
from framepack_pack.framepack_core.comfy_host import fp8_attention
from framepack_pack.framepack_core.comfy_host.attention_choice import (
    FLASH3_MODULES,
    OVERRIDE,
    SHORTEST,
    attention_name,
    host_attention,
)
from framepack_pack.framepack_core.comfy_host.fp8_attention import Fp8Attention, attend_in_fp8
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.nodes.fp8_attention import FramePackFp8Attention
from sampler_run import STEPS, sample
from torch.nn.functional import scaled_dot_product_attention

EXACT = core_attention.attention_pytorch


@pytest.fixture
def attended(flash3_package):
    """A package that computes what FlashAttention-3 does on 8-bit heads; gives the keys' shapes of its calls."""
    calls = []

    def flash_attn_func(q, k, v, q_descale, k_descale, v_descale):
        assert {x.dtype for x in (q, k, v)} == {torch.float8_e4m3fn}
        calls.append(k.shape)
        wide = [x.float() * s[:, None, :, None] for x, s in ((q, q_descale), (k, k_descale), (v, v_descale))]
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in wide)).transpose(1, 2).bfloat16()

    flash3_package(FLASH3_MODULES[0], flash_attn_func=flash_attn_func)
    return calls


@pytest.fixture
def hopper(attended, tiny, monkeypatch):
    """The package on a card that it runs on."""
    monkeypatch.setattr(tiny.model, "load_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")


def heads_of(length, queries=None, dtype=torch.float32):
    """q k v [2, 3, L, 16] as the transformer has them, values of very different heads."""
    joint = torch.randn(2, length, 3, 3, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = (x.transpose(1, 2) for x in joint.unbind(2))
    return q[:, :, :queries].to(dtype), k.to(dtype), (v * torch.tensor([0.01, 1.0, 100.0]).view(1, 3, 1, 1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [None, 9])
def test_long_attention_is_computed_from_8_bit_heads(attended, dtype, queries):
    q, k, v = heads_of(33, queries, dtype)
    options = {OVERRIDE: Fp8Attention(shortest=33)}
    got = host_attention(q, k, v, 3, options)
    assert attended == [(2, 33, 3, 16)]
    assert got.dtype == dtype
    exact = EXACT(q.float(), k.float(), v.float(), 3, skip_reshape=True)
    got, exact = got.float().view(2, -1, 3, 16), exact.view(2, -1, 3, 16)
    error = (got - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))  # [B, H]
    assert 0.01 < float(error.max()) < 0.06  # e4m3 has three bits behind the point


def test_short_masked_and_flat_attention_is_the_hosts(attended):
    q, k, v = heads_of(33)
    override = Fp8Attention(shortest=34)
    assert torch.equal(override(EXACT, q, k, v, 3, skip_reshape=True), EXACT(q, k, v, 3, skip_reshape=True))
    mask = torch.zeros(33, 33).fill_diagonal_(-5.0)
    override = Fp8Attention(shortest=2)
    for more in ({"mask": mask}, {"skip_output_reshape": True}):
        assert torch.equal(
            override(EXACT, q, k, v, 3, skip_reshape=True, **more), EXACT(q, k, v, 3, skip_reshape=True, **more)
        )
    flat = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]  # [B, L, heads * d]
    assert torch.equal(override(EXACT, *flat, 3), EXACT(*flat, 3))
    assert not attended


def test_films_are_sampled_with_it(attended, tiny, new_film, positive):
    model = tiny.model.clone()
    model.model_options["transformer_options"][OVERRIDE] = Fp8Attention(shortest=20)  # the tiny film is short
    exact, got = (
        film_latents(sample(tiny, positive, new_film(), model=each)[0]).double() for each in (tiny.model, model)
    )
    config = tiny.model.model.diffusion_model.config
    assert len(attended) == 2 * STEPS * (config.num_layers + config.num_single_layers)  # of two sections
    assert 0 < float((got - exact).norm() / exact.norm()) < 0.1


def test_the_model_before_the_node_stays_as_it_is(hopper, tiny):
    (model,) = FramePackFp8Attention.execute(tiny.model).args
    assert model.model_options["transformer_options"][OVERRIDE] == Fp8Attention(SHORTEST)
    assert OVERRIDE not in tiny.model.model_options["transformer_options"]


def test_the_report_names_it(hopper, tiny):
    options = attend_in_fp8(tiny.model).model_options["transformer_options"]
    assert attention_name(torch.device("cuda"), torch.bfloat16, 19229, 128, options) == "FlashAttention-3 in fp8"


def test_it_is_refused_on_top_of_another_override(hopper, tiny):
    model = attend_in_fp8(tiny.model)
    with pytest.raises(ValueError, match="already replaced by another node"):
        FramePackFp8Attention.execute(model)


def test_it_is_refused_on_another_card(hopper, tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    with pytest.raises(ValueError, match="Hopper cards.*this is a card.*--use-sage-attention"):
        FramePackFp8Attention.execute(tiny.model)


def test_it_is_refused_on_an_amd_card_of_the_same_number(hopper, tiny, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="Hopper cards"):
        FramePackFp8Attention.execute(tiny.model)


def test_it_is_refused_without_a_card(tiny):
    with pytest.raises(ValueError, match="this is cpu"):
        FramePackFp8Attention.execute(tiny.model)


def test_it_is_refused_without_the_package(hopper, tiny, monkeypatch):
    monkeypatch.setattr(fp8_attention, "flash3_function", lambda: None)
    with pytest.raises(ValueError, match="fa3-fwd"):
        FramePackFp8Attention.execute(tiny.model)


def test_another_architecture_is_refused(hopper, tiny):
    with pytest.raises(ValueError, match="not FramePack"):
        FramePackFp8Attention.execute(types.SimpleNamespace(model=object()))
