"""Prompts to conditioning, and what is refused before weights are loaded."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.comfy_host.conditioning import (
    HISTORY_KEY,
    RANGE_KEY,
    VisionOutput,
    section_conditioning,
    set_values,
)
from framepack_pack.framepack_core.comfy_host.text_encoding import check_tokens, cut_tokens, encode_prompts
from framepack_pack.framepack_core.model.config import metadata_of
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.packing import pack_history
from framepack_pack.framepack_core.prompt_ranges import PromptRange
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
from framepack_pack.nodes.history import FramePackApplyHistory
from framepack_pack.nodes.prompts import FramePackSectionPrompts, FramePackSetRange
from safetensors.torch import save_file
from sampler_run import sample


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fails as soon as the host is asked to load a model."""
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda *_, **__: pytest.fail("weights were loaded first")
    )


def counted(clip, monkeypatch):
    calls = []
    encode = clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: (calls.append(1), encode(tokens))[1])
    return calls


def test_each_text_is_encoded_once(tiny, monkeypatch):
    calls = counted(tiny.clip, monkeypatch)
    conditioning = encode_prompts(tiny.clip, "[0: walk][1: run][2: walk]", 8.0)
    assert len(calls) == 2
    assert [entry[1][RANGE_KEY].start for entry in conditioning] == [0, 1, 2]
    assert all(entry[1]["guidance"] == 8.0 for entry in conditioning)
    assert torch.equal(conditioning[0][0], conditioning[2][0])
    assert not torch.equal(conditioning[0][0][:, 0], conditioning[1][0][:, 0])


def test_brackets_are_text_and_not_weights(tiny):
    text = "a (cat:1.5) walks"
    raw, weighted = (
        tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text, **how))[0][0]
        for how in ({"disable_weights": True}, {})
    )
    encoded = encode_prompts(tiny.clip, text, 10.0)[0][0]
    assert torch.equal(encoded, raw)
    assert encoded.shape != weighted.shape or not torch.equal(encoded, weighted)


def test_prompts_are_cut_at_256_tokens(tiny, caplog):
    short, long, longer = (encode_prompts(tiny.clip, "cat " * n, 10.0)[0][0] for n in (200, 300, 400))
    assert short.shape[1] == 200 + 1  # with the end-of-turn token, as the original
    assert long.shape[1] == longer.shape[1] == 256
    assert torch.equal(long, longer)
    torch.testing.assert_close(long[:, :200], short[:, :200])
    assert "FramePack reads 256" in caplog.text


def test_cutting_leaves_one_token_for_the_host_to_drop():
    pairs = [(token, 1.0) for token in range(95 + 256 + 1)]
    assert cut_tokens(pairs)[:-1] == pairs[: 95 + 256]
    assert cut_tokens(pairs)[-1] == pairs[95 + 255], "not the end-of-turn token, which the host would keep"
    assert cut_tokens(pairs[:-1]) == pairs[:-1]


def test_wrong_tokenizers_are_refused(tiny):
    good = [int(pair[0]) for pair in tiny.clip.tokenize("a")["llama"][0]]
    check_tokens(good)
    with pytest.raises(ValueError, match="gives wrong tokens.*transformers"):
        check_tokens([63764, *good])
    with pytest.raises(ValueError, match="gives wrong tokens"):
        check_tokens(good[:50])


def test_other_text_encoders_are_named(tiny, monkeypatch):
    monkeypatch.setattr(tiny.clip, "tokenize", lambda text, **_: {"l": [], "g": []})
    with pytest.raises(ValueError, match="encoders l, g; FramePack needs clip_l and llava_llama3.*hunyuan_video"):
        encode_prompts(tiny.clip, "a", 10.0)


def test_the_prompt_widget_is_checked_before_the_run():
    assert FramePackSectionPrompts.validate_inputs("a cat") is True
    assert "ends before it starts" in FramePackSectionPrompts.validate_inputs("[3s-1s: a]")
    assert "prompt list is empty" in FramePackSectionPrompts.validate_inputs(" ")


def test_set_range_tags_a_copy(positive):
    tagged = FramePackSetRange.execute(positive, 1.0, 0.0, "seconds").args[0]
    assert all(entry[1][RANGE_KEY] == PromptRange(1.0, None, "seconds") for entry in tagged)
    assert positive[0][1][RANGE_KEY].unit == "sections"
    with pytest.raises(ValueError, match="ends before it starts"):
        FramePackSetRange.execute(positive, 2.0, 1.0, "seconds")


def test_entries_get_history_and_vision_and_stay_untouched(positive, new_film):
    history = new_film()
    section = history.next_section
    packed = pack_history(history, section)
    kept = [sorted(entry[1]) for entry in positive]
    ((_, values),) = section_conditioning(positive, history, section, packed)
    assert values[HISTORY_KEY] is packed
    assert torch.equal(values["clip_vision_output"].last_hidden_state, history.image_embeds)
    assert [sorted(entry[1]) for entry in positive] == kept
    own = VisionOutput(torch.zeros(1, 16, 36))
    ((_, values),) = section_conditioning(set_values(positive, {"clip_vision_output": own}), history, section, packed)
    assert values["clip_vision_output"] is own, "an entry's own image wins"


def test_untagged_entries_hold_where_no_range_does(negative, positive, new_film):
    history = new_film("forward")
    tagged = set_values(positive[:1], {RANGE_KEY: PromptRange(1, None, "sections")})
    both = [*negative, *tagged]
    packed = pack_history(history, history.next_section)
    first, second = (section_conditioning(both, history, section, packed) for section in history.plan.sections)
    assert torch.equal(first[0][0], negative[0][0])
    assert torch.equal(second[0][0], positive[0][0])


def widths(conditioning, context=32, pooled=32):
    return [
        [torch.zeros(1, 4, context), {**entry[1], "pooled_output": torch.zeros(1, pooled)}] for entry in conditioning
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"positive": []}, "positive is empty"),
        (
            lambda p: {"positive": widths(p, context=64)},
            "text features of width 64 .*, but .*transformer.safetensors needs width 32 .*hunyuan_video",
        ),
        (
            lambda p: {"positive": widths(p, pooled=1280)},
            "pooled features of width 1280 .clip_g., but .* needs width 32",
        ),
        (lambda p: {"negative": widths(p, pooled=1280)}, "negative has pooled features of width 1280"),
        (lambda p: {"positive": [[p[0][0], {}]]}, "pooled features of width None"),
        (lambda p: {"cfg": 2.0}, "cfg is 2.0, which needs a negative conditioning"),
        (lambda p: {"steps": 0}, "at least 1 step"),
        (
            lambda p: {"positive": set_values(p[:1], {RANGE_KEY: PromptRange(2, None, "sections")})},
            "lies outside the film",
        ),
        (
            lambda p: {"positive": set_values(p, {"clip_vision_output": VisionOutput(torch.zeros(1, 16, 1024))})},
            "positive has vision features of width 1024 .clip_vision_l., but .* needs width 36",
        ),
    ],
)
def test_what_does_not_fit_is_refused_first(tiny, positive, new_film, nothing_heavy, change, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny, history=new_film(), **{"positive": positive, **change(positive)})


DEMO = {"text_embed_dim": 64, "pooled_projection_dim": 64, "image_proj_dim": 64}
REAL = {"text_embed_dim": 4096, "pooled_projection_dim": 768, "image_proj_dim": 1152}
FILES = {
    "text_embed_dim": ("llama.safetensors of the demo checkpoint", "llava_llama3"),
    "pooled_projection_dim": ("clip_l.safetensors of the demo checkpoint", "clip_l"),
    "image_proj_dim": ("clip_vision.safetensors of the demo checkpoint", "sigclip_vision_patch14_384"),
}


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(("own", "other", "turn"), [(DEMO, REAL, 1), (REAL, DEMO, -1)])
def test_demo_and_real_files_are_not_mixed_and_both_are_named(
    tmp_path, new_film, nothing_heavy, own, other, turn, part
):
    path = tmp_path / "folder" / "a_transformer.safetensors"
    path.parent.mkdir()
    config = replace(tiny_transformer_config(), **own)
    save_file(FramePackTransformer(config).state_dict(), path, metadata_of(config))
    model = load_transformer(path)
    sizes = {**own, part: other[part]}
    positive = [[torch.zeros(1, 4, sizes["text_embed_dim"]), {}]]
    positive[0][1]["pooled_output"] = torch.zeros(1, sizes["pooled_projection_dim"])
    history = new_film(image_embeds=torch.zeros(1, 16, sizes["image_proj_dim"]))
    needed, got = FILES[part][::turn]
    message = f"width {other[part]} .{got}., but folder/a_transformer.safetensors needs width {own[part]} .{needed}."
    with pytest.raises(ValueError, match=message):
        sample(None, positive, history, model=model)
    # wired by hand, through any sampler: the model itself refuses, before the first step
    applied, _, _, latent = FramePackApplyHistory.execute(positive, history).args
    with pytest.raises(ValueError, match=f"width {other[part]} .{got}., but this transformer needs width {own[part]}"):
        model.model.extra_conds(
            noise=latent["samples"], device=torch.device("cpu"), cross_attn=applied[0][0], **applied[0][1]
        )


def test_start_images_need_their_vision_embedding(tiny, positive, new_film, nothing_heavy):
    blind = new_film(image_embeds=None)
    for run in (lambda: sample(tiny, positive, blind), lambda: FramePackApplyHistory.execute(positive, blind)):
        with pytest.raises(ValueError, match="start image but no vision embedding"):
            run()
    other = new_film(image_embeds=torch.zeros(1, 16, 1024))
    with pytest.raises(ValueError, match="the start image has vision features of width 1024"):
        sample(tiny, positive, other)


def test_other_models_are_refused(tiny, positive, new_film, nothing_heavy):
    with pytest.raises(ValueError, match="The model is object, not FramePack"):
        sample(tiny, positive, new_film(), model=type("Patcher", (), {"model": object(), "attachments": {}})())


def test_whole_films_are_refused(tiny, positive, new_film):
    whole = sample(tiny, positive[:1], new_film(count=1), steps=1)[0]
    for run in (
        lambda: sample(tiny, positive[:1], whole),
        lambda: FramePackApplyHistory.execute(positive[:1], whole),
    ):
        with pytest.raises(ValueError, match="already has all of its 1 sections"):
            run()
