"""Our transformer against diffusers' on the same weights, and the changes that must be seen."""

import math

import pytest
import torch
from framepack_pack.framepack_core.model import blocks, operations, rope, transformer
from framepack_pack.framepack_core.model.blocks import Services
from framepack_pack.framepack_core.model.config import FramePackConfig, metadata_of, read_config
from framepack_pack.framepack_core.model.pieces import GAPS, mlp_piece
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from model_inputs import CONFIG, inputs, layout, oracle, ours, relative_l2, run_oracle, run_ours

FP32_LIMIT = 1e-5
BF16_LIMIT = 3e-2
VISIBLE = 1e-3  # a hundred times the limit: what a wrong model must exceed


@pytest.fixture(scope="module")
def reference():
    return oracle()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 14), (12, 10), (20, 12)])
@pytest.mark.parametrize("kind", ["backward 0", "backward 1", "backward 2", "backward 3", "forward"])
def test_equals_diffusers_in_fp32(reference, height, width, kind):
    given = inputs(height, width, kind)
    assert relative_l2(run_ours(ours(reference), given), run_oracle(reference, given)) <= FP32_LIMIT


@pytest.mark.parametrize("lengths", [(20,), (1,), (13, 20), (7, 7)])
def test_equals_diffusers_for_partial_text_and_batches(reference, lengths):
    given = inputs(10, 12, lengths=lengths)
    expected = torch.cat([run_oracle(reference, sample(given, i)) for i in range(len(lengths))])
    assert relative_l2(run_ours(ours(reference), given), expected) <= FP32_LIMIT


def test_equals_diffusers_with_zero_history(reference):
    given = inputs(10, 14, "backward 3", zero_history=True)
    expected = run_oracle(reference, given)
    assert relative_l2(run_ours(ours(reference), given), expected) <= FP32_LIMIT
    dropped = run_ours(ours(reference), given, history_2x=None, history_4x=None)
    assert relative_l2(dropped, expected) > VISIBLE, "zero history is attended to, so dropping it must show"


def test_equals_diffusers_in_bf16(reference):
    # 883.495 and 10000 round to 884 and 9984, which both sides must see
    given = inputs(10, 14, "backward 2", timestep=883.495)
    half = oracle().to(torch.bfloat16)
    assert relative_l2(run_ours(ours(reference, torch.bfloat16), given), run_oracle(half, given)) <= BF16_LIMIT


def test_bf16_rounds_timestep_and_guidance(reference):
    model = ours(reference, torch.bfloat16)
    given = inputs(8, 8, timestep=883.495)
    rounded = given._replace(timestep=torch.tensor([884.0]), guidance=torch.tensor([9984.0]))
    assert torch.equal(run_ours(model, given), run_ours(model, rounded))


def test_guidance_10000_is_not_9984(reference):
    given = inputs(8, 8)
    model = ours(reference)
    other = run_ours(model, given, guidance=torch.tensor([9984.0]))
    assert relative_l2(other, run_ours(model, given)) > VISIBLE


def test_output_is_float32_velocity_of_the_section(reference):
    given = inputs(8, 10)
    out = run_ours(ours(reference, torch.bfloat16), given)
    assert out.shape == given.x.shape
    assert out.dtype == torch.float32


def centre_picked(grid, rate):
    return rope.pad_to_multiple(grid, (rate, rate, rate))[..., rate // 2 :: rate, rate // 2 :: rate, rate // 2 :: rate]


def renormalised(grid, rate):
    pooled = torch.nn.functional.avg_pool3d(rope.pad_to_multiple(grid, (rate, rate, rate)), rate)
    return pooled / pooled.norm(dim=0, keepdim=True)


@pytest.mark.parametrize("wrong", [centre_picked, renormalised])
def test_oracle_sees_wrong_history_positions(reference, monkeypatch, wrong):
    """Not a test of ours but of the oracle: were our averaging replaced by these, the parity tests would fail."""
    given = inputs(10, 14, "backward 1")
    model = ours(reference)
    monkeypatch.setattr(transformer, "pooled_grid", wrong)
    assert relative_l2(run_ours(model, given), run_oracle(reference, given)) > VISIBLE


def test_oracle_sees_swapped_scale_and_shift(reference, monkeypatch):
    given = inputs(8, 8)
    model = ours(reference)
    right = blocks.modulated_norm
    monkeypatch.setattr(transformer, "modulated_norm", lambda x, shift, scale: right(x, scale, shift))
    assert relative_l2(run_ours(model, given), run_oracle(reference, given)) > VISIBLE


def test_text_to_video_has_no_start_and_no_image(reference):
    given = inputs(8, 8)
    indices = given.frame_indices._replace(history_1x=given.frame_indices.history_1x[1:])
    model = ours(reference)
    out = run_ours(model, given, frame_indices=indices, history_1x=given.history_1x[:, :, 1:], image_embeds=None)
    assert out.shape == given.x.shape
    assert torch.isfinite(out).all()


def test_odd_latents_and_wrong_indices_are_refused(reference):
    model, given = ours(reference), inputs(8, 8)
    with pytest.raises(ValueError, match="must be even"):
        run_ours(model, given, x=given.x[..., :7])
    with pytest.raises(ValueError, match="8 frame indices were given for 9"):
        run_ours(model, given, frame_indices=given.frame_indices._replace(section=tuple(range(8))))


def test_released_sizes():
    with torch.device("meta"):
        state_dict = FramePackTransformer(FramePackConfig()).state_dict()
    assert len(state_dict) == 1274
    assert sum(tensor.numel() for tensor in state_dict.values()) == 12_874_314_816


def test_released_names_and_shapes_are_diffusers():
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    with torch.device("meta"):
        theirs = HunyuanVideoFramepackTransformer3DModel(
            has_image_proj=True, image_proj_dim=1152, has_clean_x_embedder=True
        ).state_dict()
        own = FramePackTransformer(FramePackConfig()).state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: tensor.shape for key, tensor in theirs.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("config", [CONFIG, FramePackConfig()])
def test_sizes_are_read_back_from_shapes_and_metadata(config, prefix):
    with torch.device("meta"):
        state_dict = FramePackTransformer(config).state_dict()
    shapes = {prefix + key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    assert read_config(shapes, metadata_of(config), prefix) == config


def test_released_sizes_need_no_metadata():
    with torch.device("meta"):
        state_dict = FramePackTransformer(FramePackConfig()).state_dict()
    assert read_config({key: tuple(tensor.shape) for key, tensor in state_dict.items()}) == FramePackConfig()


def test_axes_that_do_not_fit_are_refused():
    with torch.device("meta"):
        state_dict = FramePackTransformer(CONFIG).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    with pytest.raises(ValueError, match=r"RoPE axes \(8, 8, 8\).*add up"):
        read_config(shapes, {"framepack_config": '{"rope_axes_dim": [8, 8, 8]}'})


def test_blocks_can_be_replaced(reference):
    """The contract of SkipLayerGuidance and its like."""
    given = inputs(8, 8)
    model = ours(reference)
    seen = []

    def passing(args, extra):
        seen.append(sorted(args))
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 1): passing, ("single_block", 0): passing}}}
    assert torch.equal(run_ours(model, given, transformer_options=options), run_ours(model, given))
    assert seen[0] == ["attention_mask", "img", "pe", "transformer_options", "txt", "vec"]
    assert seen[1] == ["attention_mask", "img", "pe", "transformer_options", "vec"]

    skipping = {"patches_replace": {"dit": {("single_block", 0): lambda args, _: {"img": args["img"]}}}}
    assert not torch.equal(run_ours(model, given, transformer_options=skipping), run_ours(model, given))


def test_forward_keeps_the_callers_options(reference):
    options: dict = {}
    run_ours(ours(reference), inputs(8, 8), transformer_options=options)
    assert options == {}


def sample(given, i):
    return type(given)(*(value[i : i + 1] if torch.is_tensor(value) else value for value in given))


def test_layout_of_the_notes():
    assert layout("backward 3").section == tuple(range(28, 37))
    assert layout("forward").history_1x == (0, 19)


@pytest.mark.parametrize("lengths", [(13,), (13, 20)])
def test_last_block_computes_the_section_alone_unless_it_is_replaced(reference, lengths):
    given = inputs(10, 12, lengths=lengths)
    model = ours(reference)
    queries, replaced = [], []

    def attention(q, k, v, heads, **options):
        queries.append(q.shape[2])
        return operations.attention(q, k, v, heads, **options)

    def noting(args, extra):
        replaced.append(args["img"].shape[1])
        out = extra["original_block"](args)
        replaced.append(out["img"].shape[1])
        return out

    model.single_transformer_blocks[-1].services = Services(attention, operations.weight_for)
    cropped = run_ours(model, given)
    assert set(queries) == {9 * 5 * 6}, "the section's tokens"
    queries.clear()
    options = {"patches_replace": {"dit": {("single_block", 1): noting}}}
    whole = run_ours(model, given, transformer_options=options)
    assert set(queries) == set(replaced) == {9 * 30 + 2 * 30 + 3 * 3 + 4 * 2 * 2 + 9 + max(lengths)}
    torch.testing.assert_close(cropped, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("piece", [1, 50, 100000])
def test_mlps_in_pieces_give_the_same(reference, piece):
    given = inputs(8, 8, lengths=(13, 20))
    model = ours(reference)
    section = model.section_inputs(given.x, given.frame_indices, given[6:9])
    context, lengths = transformer.crop(given.context, given.attention_mask)
    (step,) = model.step_inputs([given.timestep], given.guidance, given.y, context, given.image_embeds, lengths)
    sizes = []
    model.single_transformer_blocks[0].proj_mlp.register_forward_hook(lambda _, got, __: sizes.append(got[0].shape[1]))
    out = model.velocity(given.x, step, section, mlp_piece=piece)
    assert max(sizes) <= piece, "pieces of at most this size"
    assert len(sizes) == math.ceil(sum(sizes) / piece), "and no more of them than that takes"
    assert max(sizes) - min(sizes) < len(sizes), "equally long, but for what is left over"
    torch.testing.assert_close(out, run_ours(model, given), atol=1e-5, rtol=1e-5)


def test_pieces_are_as_large_as_memory_lets_them_up_to_10240_tokens():
    config, tokens = FramePackConfig(), 19_257
    streams = 5 * tokens * config.width * 2
    each = (2 * config.mlp_dim + 2 * config.width) * 2
    assert mlp_piece(config, tokens, 2, GAPS + streams + tokens * each) == 10240
    assert mlp_piece(config, tokens, 2, GAPS + streams + 10240 * each - 1) == 10239
    assert mlp_piece(config, tokens, 2, GAPS + streams + 3000 * each) == 3000
    assert mlp_piece(config, tokens, 2, 0) == 1024
