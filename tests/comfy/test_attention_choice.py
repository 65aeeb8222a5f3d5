"""Who decides on the attention, and what a measurement leads to. The measuring itself: scripts/check_attention.py."""

import comfy.cli_args
import comfy.ldm.modules.attention as core_attention
import pytest
import torch
from framepack_pack.framepack_core.comfy_host import attention_choice
from framepack_pack.framepack_core.comfy_host.attention_choice import (
    DECIDING_FLAGS,
    FLASH3,
    FLASH3_MODULES,
    TORCH_BACKENDS,
    attend,
    attention_name,
    fastest,
    flash3_function,
    host_attention,
    measured_length,
    user_decided,
)

DEFAULT = core_attention.attention_pytorch
HOST_FLAGS = [
    option
    for action in comfy.cli_args.parser._actions
    for option in action.option_strings
    if option.startswith("--use-") and "attention" in option
]
CUDNN, FLASH, EFFICIENT = TORCH_BACKENDS


def parsed(*flags):
    return comfy.cli_args.parser.parse_args(list(flags))


def test_nothing_said_leaves_the_choice_to_us():
    assert not user_decided(parsed(), DEFAULT, {})
    assert not user_decided(parsed("--disable-xformers", "--lowvram"), DEFAULT, {"sigmas": None})


@pytest.mark.parametrize("flag", [*HOST_FLAGS, "--deterministic"])
def test_every_attention_flag_of_the_host_decides(flag):
    assert user_decided(parsed(flag), DEFAULT, {})


def test_the_host_has_the_flags_that_we_know():
    assert {flag.removeprefix("--").replace("-", "_") for flag in HOST_FLAGS} <= set(DECIDING_FLAGS)
    assert len(HOST_FLAGS) >= 5


def test_an_override_node_decides(tiny):
    def override(attention, *args, **kwargs):
        return attention(*args, **kwargs)

    assert user_decided(parsed(), DEFAULT, {"optimized_attention_override": override})


@pytest.mark.skipif(not hasattr(core_attention, "AttentionTensorContainer"), reason="a node of newer hosts")
def test_the_model_attention_backend_node_decides(tiny):
    from comfy_extras.nodes_model_advanced import ModelAttentionBackend

    (model,) = ModelAttentionBackend().patch(tiny.model, "pytorch attention")
    assert user_decided(parsed(), DEFAULT, model.model_options["transformer_options"])
    assert not user_decided(parsed(), DEFAULT, tiny.model.model_options["transformer_options"])


def test_another_function_as_the_hosts_attention_decides():
    assert user_decided(parsed(), core_attention.attention_sub_quad, {})  # as with xformers or an extension's patch


def test_the_fastest_backend_is_taken_where_the_host_is_much_slower():
    hopper = {None: 13.0, CUDNN: 7.4, FLASH: 12.9, EFFICIENT: 25.7}
    assert fastest(hopper) is CUDNN


def test_a_small_gain_leaves_the_host_alone():
    assert fastest({None: 10.0, CUDNN: 9.5, FLASH: 10.0}) is None
    assert fastest({None: 7.4, CUDNN: 7.3, FLASH: 12.9}) is None
    assert fastest({None: 10.0}) is None


def test_lengths_of_one_power_of_two_share_a_measurement():
    assert {measured_length(length) for length in (16384, 19232, 19257, 32767)} == {16384}
    assert measured_length(16383) == 8192


@pytest.mark.parametrize("backend", [CUDNN, FLASH, EFFICIENT])
def test_a_chosen_backend_gives_what_the_host_gives(backend):
    joint = torch.randn(2, 33, 3, 4, 8)
    q, k, v = (x.transpose(1, 2) for x in joint.unbind(2))
    order = torch._C._get_sdp_priority_order()
    out = attend(q, k, v, backend)
    expected = DEFAULT(q, k, v, 4, skip_reshape=True)
    assert out.shape == (2, 33, 32)
    torch.testing.assert_close(out, expected)
    assert torch._C._get_sdp_priority_order() == order
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", FLASH3_MODULES)
@pytest.mark.parametrize("gives_sums", [False, True])
def test_flash_attention_3_gives_what_the_host_gives(flash3_package, name, gives_sums):
    def flash_attn_func(q, k, v):
        out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return (out, None) if gives_sums else out

    flash3_package(name, flash_attn_func=flash_attn_func)
    q, k, v = torch.randn(3, 2, 4, 33, 8)
    torch.testing.assert_close(attend(q, k, v, FLASH3), DEFAULT(q, k, v, 4, skip_reshape=True))


def test_flash_attention_3_is_not_needed_and_a_broken_one_is_said(flash3_package, caplog, monkeypatch):
    monkeypatch.setattr(attention_choice, "FLASH3_MODULES", ("broken_flash3",))
    flash3_package("another")
    assert flash3_function() is None
    with pytest.raises(RuntimeError, match="fa3-fwd"):
        attend(*torch.randn(3, 1, 2, 4, 8), FLASH3)
    flash3_package("broken_flash3")  # without the function
    with caplog.at_level("INFO"):
        assert flash3_function() is None
    assert "broken_flash3 is installed and does not load" in caplog.text


def test_on_the_cpu_the_host_attends(monkeypatch):
    monkeypatch.setattr(core_attention, "optimized_attention", DEFAULT)
    q, k, v = torch.randn(3, 1, 2, 2500, 8, dtype=torch.bfloat16)
    assert torch.equal(host_attention(q, k, v, 2), DEFAULT(q, k, v, 2, skip_reshape=True))


def test_the_report_names_the_backend_that_was_measured(monkeypatch):
    monkeypatch.setattr(core_attention, "optimized_attention", DEFAULT)
    monkeypatch.setattr(attention_choice, "measured_backend", lambda *_: CUDNN)
    card = torch.device("cuda"), torch.bfloat16
    assert attention_name(*card, 19232, 128, {}) == "pytorch, by cudnn as measured on this card"
    assert attention_name(*card, 900, 128, {}) == "pytorch"  # too short to be measured
    assert attention_name(torch.device("cpu"), torch.bfloat16, 19232, 128, {}) == "pytorch"
    overridden = attention_name(*card, 19232, 128, {"optimized_attention_override": print})
    assert overridden == "pytorch, overridden on the model"
