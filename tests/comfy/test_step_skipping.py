"""Step skipping on the MODEL, through the sampling nodes of the pack and of the host."""

import gc
import json
import logging
import weakref
from itertools import pairwise

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_easycache
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from framepack_pack.framepack_core.comfy_host import section_denoiser, step_skipping
from framepack_pack.framepack_core.comfy_host.step_skipping import STEPS_DONE, skip_steps
from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompts
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.framepack_core.model import transformer
from framepack_pack.framepack_core.schedule import section_sigmas
from framepack_pack.framepack_core.skipping.first_block import FirstBlockCache
from framepack_pack.framepack_core.skipping.magcache import MagCache
from framepack_pack.framepack_core.skipping.magnitudes import PUBLISHED_RATIOS, MagnitudeTable, published_table
from framepack_pack.framepack_core.skipping.methods import METHODS
from framepack_pack.framepack_core.skipping.run import StepReport
from framepack_pack.framepack_core.skipping.teacache import TeaCache
from framepack_pack.nodes.history import FramePackAppendSection, FramePackApplyHistory
from framepack_pack.nodes.sampling_parts import FramePackSigmas, FramePackUniPC
from framepack_pack.nodes.step_skipping import FramePackCalibrateSkipping, FramePackStepSkipping
from sampler_run import sample

import nodes as core_nodes

PLAN = "CC..C..CC"  # of nine steps: computed or re-used
STEPS = len(PLAN)


def table_of(history, plan=PLAN):
    """Ratios with which MagCache plans exactly so: 1 where it skips, far from 1 where it computes."""
    sigmas = tuple(section_sigmas(history, len(plan))[:-1].tolist())
    return MagnitudeTable(sigmas, tuple(1.0 if step == "." else 2.0 for step in plan))


@pytest.fixture
def skipping(tiny, new_film):
    """A model that skips steps by PLAN."""
    return skip_steps(tiny.model, MagCache(0.05, 2, retention=0.0, table=table_of(new_film())))


class Watch:
    """Notes for every run of a model its report, and which steps ran the last block, one letter a call."""

    def __init__(self, model):
        self.model = model.clone()
        self.reports, self.calls, self.ran = [], [], []
        self.model.add_callback(STEPS_DONE, self.reports.append)
        self.model.add_wrapper_with_key("diffusion_model", "watch", self.watch_call)
        block = len(model.model.diffusion_model.single_transformer_blocks) - 1
        ran = self.ran  # a function and not a method: the host deep-copies this one when it clones a model
        self.model.set_model_patch_replace(
            lambda args, extra: (ran.append(1), extra["original_block"](args))[1], "dit", "single_block", block
        )

    def watch_call(self, run, *args, **kwargs):
        before = len(self.ran)
        out = run(*args, **kwargs)
        self.calls.append("C" if len(self.ran) > before else ".")
        return out


def values(node_output):
    return getattr(node_output, "args", node_output)


def hand_wired(model, positive, history):
    """One section by core's SamplerCustomAdvanced."""
    section_positive, _, noise, latent = FramePackApplyHistory.execute(positive, history).args
    guider = values(nodes_custom_sampler.BasicGuider().execute(model, section_positive))[0]
    sigmas = FramePackSigmas.execute(history, STEPS, 0.0).args[0]
    sampler = FramePackUniPC.execute("bh1").args[0]
    advanced = nodes_custom_sampler.SamplerCustomAdvanced()
    samples = values(advanced.execute(noise, guider, sampler, sigmas, latent))[0]
    return FramePackAppendSection.execute(history, samples).args[0]


def test_the_sampler_node_skips_by_the_plan_in_every_section(skipping, tiny, positive, new_film, caplog):
    watch = Watch(skipping)
    with caplog.at_level(logging.INFO):
        film = sample(tiny, positive, new_film(), model=watch.model, steps=STEPS)[1]["samples"]
    assert "".join(watch.calls) == PLAN * 2
    assert watch.reports == [StepReport("MagCache", 5, STEPS)] * 2
    assert caplog.text.count("FramePack MagCache: computed 5 of 9 steps") == 2
    assert "interpolated" not in caplog.text
    assert torch.isfinite(film).all()
    assert not torch.equal(film, sample(tiny, positive, new_film(), steps=STEPS)[1]["samples"])


@pytest.mark.parametrize("method", [TeaCache(1.0, 0.0), FirstBlockCache(1.2, 0.0)])
def test_the_methods_that_decide_while_sampling_skip_too(tiny, positive, new_film, method):
    watch = Watch(skip_steps(tiny.model, method))
    film = sample(tiny, positive, new_film(), model=watch.model, steps=12)[1]["samples"]
    assert torch.isfinite(film).all()
    assert len(watch.reports) == 2
    for number, report in enumerate(watch.reports):
        calls = watch.calls[12 * number : 12 * (number + 1)]
        assert calls[0] == calls[-1] == "C"
        assert calls.count("C") == report.computed < 12


@pytest.mark.parametrize("name", METHODS)
def test_threshold_0_is_the_plain_film_bit_for_bit(tiny, positive, new_film, name):
    never = METHODS[name].__class__(**{**vars(METHODS[name]), "threshold": 0.0})
    if isinstance(never, MagCache):
        never = MagCache(0.0, never.max_skips, table=table_of(new_film()))
    plain = sample(tiny, positive, new_film(), steps=STEPS)[1]["samples"]
    same = sample(tiny, positive, new_film(), model=skip_steps(tiny.model, never), steps=STEPS)[1]["samples"]
    assert torch.equal(same, plain)


@pytest.mark.parametrize("method", [None, TeaCache(1.0, 0.0), FirstBlockCache(1.2, 0.0)])
def test_a_section_is_the_same_after_another_and_alone_and_by_hand(skipping, tiny, positive, new_film, method):
    """Nothing of section 1 is left when section 2 starts, in the sampler node's loop or another's."""
    watch = Watch(skip_steps(tiny.model, method) if method else skipping)
    model = watch.model
    whole = sample(tiny, positive, new_film(), model=model, steps=STEPS)[0]
    assert all(report.computed < STEPS for report in watch.reports)
    first = sample(tiny, positive, new_film(), model=model, steps=STEPS, max_sections=1)[0]
    alone = sample(tiny, positive, first, model=model, steps=STEPS)[0]
    by_hand = hand_wired(model, positive, first)
    assert torch.equal(film_latents(alone), film_latents(whole))
    assert torch.equal(film_latents(by_hand), film_latents(whole))


def test_ksampler_and_partial_denoise(skipping, positive, new_film):
    section_positive, _, _, latent = FramePackApplyHistory.execute(positive, new_film()).args
    for sampler in ("euler", "uni_pc", "dpmpp_2m", "res_multistep"):
        watch = Watch(skipping)
        core_nodes.KSampler().sample(
            watch.model, 5, 12, 1.0, sampler, "simple", section_positive, section_positive, latent, 0.7
        )
        (report,) = watch.reports
        assert watch.calls[0] == "C"
        assert watch.calls[-1] == "C"
        assert report.computed == watch.calls.count("C") < 12, sampler
        assert len(watch.calls) == report.steps == 12, sampler


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral"])
def test_samplers_that_call_twice_a_step_skip_by_noise_level(skipping, tiny, positive, new_film, sampler):
    """Step by step, all calls at a level do as the plan says; Heun's second call is at the next level."""
    watch = Watch(skipping)
    film = sample(
        tiny, positive[:1], new_film(count=1), model=watch.model, steps=STEPS,
        sampler=comfy.samplers.sampler_object(sampler),
    )[1]["samples"]  # fmt: skip
    expected = {
        "heun": "C" + "".join(2 * step for step in PLAN[1:]),
        "dpm_2": "".join(2 * step for step in PLAN[:-1]) + PLAN[-1],
        "dpmpp_2s_ancestral": "".join(2 * step for step in PLAN[:-1]) + PLAN[-1],
    }
    assert "".join(watch.calls) == expected[sampler]
    assert watch.reports == [StepReport("MagCache", 5, STEPS)]
    assert torch.isfinite(film).all()


@pytest.mark.parametrize("method", [None, TeaCache(1.0, 0.0), FirstBlockCache(1.2, 0.0)])
def test_positive_and_negative_are_apart_in_one_batch_or_two(skipping, tiny, new_film, monkeypatch, method):
    """Both ways of the host to run them give the same film; the prompts have one length, so both are possible."""
    model = skip_steps(tiny.model, method) if method else skipping
    prompts = [encode_prompts(tiny.clip, text, 10.0) for text in ("a cat walks", "a dog walks")]
    batch_all = comfy.samplers.can_concat_cond
    films, calls = [], []
    for together in (True, False):
        monkeypatch.setattr(comfy.samplers, "can_concat_cond", batch_all if together else lambda a, b: a is b)
        watch = Watch(model)
        settings = {"model": watch.model, "negative": prompts[1], "cfg": 3.0, "steps": STEPS}
        films.append(sample(tiny, prompts[0], new_film(count=1), **settings)[1]["samples"])
        calls.append(len(watch.calls))
        assert watch.reports[0].computed < STEPS
    assert calls == [STEPS, 2 * STEPS]
    torch.testing.assert_close(films[0], films[1], atol=2e-3, rtol=2e-3)


def test_negative_keeps_its_own_residual(skipping, tiny, positive, negative, new_film):
    """With equal prompts on both sides cfg has no effect; with a mixed-up residual it would."""
    same = sample(tiny, positive[:1], new_film(count=1), model=skipping, steps=STEPS)[1]["samples"]
    settings = {"model": skipping, "cfg": 4.0, "steps": STEPS}
    equal = sample(tiny, positive[:1], new_film(count=1), negative=positive[:1], **settings)[1]["samples"]
    torch.testing.assert_close(equal, same, atol=2e-3, rtol=2e-3)
    watch = Watch(skipping)
    other = sample(tiny, positive[:1], new_film(count=1), negative=negative, **{**settings, "model": watch.model})
    assert "".join(watch.calls) == "".join(2 * step for step in PLAN), "two prompt lengths, two calls a step"
    assert not torch.allclose(other[1]["samples"], same, atol=1e-2)


def test_skip_layer_guidance_has_a_residual_of_its_own(skipping, tiny, positive, new_film):
    node = SkipLayerGuidanceDiT
    run = getattr(node, "execute", None) or node().skip_guidance
    watch = Watch(skipping)
    guided = values(run(watch.model, 3.0, 0.0, 1.0, "0", ""))[0]
    film = sample(tiny, positive[:1], new_film(count=1), model=guided, steps=STEPS)[1]["samples"]
    assert "".join(watch.calls[::2]) == PLAN
    assert "".join(watch.calls[1::2]) == PLAN, "the guiding calls skip by the same plan"
    assert not torch.equal(
        film, sample(tiny, positive[:1], new_film(count=1), model=skipping, steps=STEPS)[1]["samples"]
    )


def test_our_sampler_is_not_asked_for_its_noise_level(skipping, tiny, positive, new_film, monkeypatch):
    """Reading it waits for the device. Our UniPC gives it as a number; other samplers have to be asked."""
    asked = []
    monkeypatch.setattr(step_skipping, "float", lambda sigma: asked.append(sigma) or float(sigma), raising=False)
    sample(tiny, positive[:1], new_film(count=1), model=skipping, steps=STEPS)
    assert not asked
    euler = comfy.samplers.sampler_object("euler")
    sample(tiny, positive[:1], new_film(count=1), model=skipping, steps=STEPS, sampler=euler)
    assert len(asked) == STEPS


@pytest.mark.parametrize("ending", [ValueError, comfy.model_management.InterruptProcessingException, None])
def test_no_state_is_left_however_sampling_ends(skipping, tiny, positive, new_film, monkeypatch, ending):
    runs, steps = [], []
    start = step_skipping.SkippingRun.__init__

    def remember(run, *args):
        start(run, *args)
        runs.append(weakref.ref(run))

    def stop(*_):
        steps.append(1)
        if ending and len(steps) == 12:
            raise ending("stop")

    monkeypatch.setattr(step_skipping.SkippingRun, "__init__", remember)
    monkeypatch.setattr(section_denoiser, "check_finite", stop)
    watch = Watch(skipping)
    options = repr(watch.model.model_options)
    try:
        sample(tiny, positive, new_film(), model=watch.model, steps=STEPS)
    except (ValueError, comfy.model_management.InterruptProcessingException):
        pass
    gc.collect()
    assert len(runs) == 2
    assert not any(run() for run in runs), "a run and its residuals are still alive"
    assert repr(watch.model.model_options) == options
    assert len(watch.reports) == (1 if ending else 2), "a section that was cut off is not reported"
    assert not any(transformer.SKIPPER in str(key) for key in vars(tiny.model.model.diffusion_model))
    monkeypatch.undo()
    again = sample(tiny, positive, new_film(), model=skipping, steps=STEPS)[1]["samples"]
    assert torch.equal(again, sample(tiny, positive, new_film(), model=skipping, steps=STEPS)[1]["samples"])


def test_the_model_before_the_patch_skips_nothing(skipping, tiny, positive, new_film):
    watch = Watch(tiny.model)
    sample(tiny, positive[:1], new_film(count=1), model=watch.model, steps=STEPS)
    assert watch.calls == ["C"] * STEPS
    assert not watch.reports


@pytest.mark.parametrize("kind", ["backward", "forward"])
def test_the_film_chooses_the_published_table(tiny, positive, new_film, monkeypatch, kind):
    chosen = []

    def choose(direction):
        chosen.append(PUBLISHED_RATIOS[direction])
        return published_table(direction)

    monkeypatch.setattr(step_skipping, "FramePackConfig", lambda: tiny.model.model.diffusion_model.config)
    monkeypatch.setattr("framepack_pack.framepack_core.skipping.magcache.published_table", choose)
    model = skip_steps(tiny.model, METHODS["MagCache fast"])
    sample(tiny, positive[:1], new_film(kind, 1), model=model, steps=6)
    assert [ratios[1] for ratios in chosen] == [1.26562 if kind == "backward" else 1.25781]


def test_published_ratios_are_refused_for_a_model_of_other_sizes(tiny):
    with pytest.raises(ValueError, match="other sizes.*FramePack Calibrate Skipping"):
        FramePackStepSkipping.execute(tiny.model, "MagCache quality", 0.0, 0.2)
    assert FramePackStepSkipping.execute(tiny.model, "TeaCache", 0.0, 0.2).args[0] is not tiny.model


def test_widgets_reach_the_method(tiny, new_film):
    text = table_of(new_film()).text()
    (model,) = FramePackStepSkipping.execute(tiny.model, "MagCache balanced", 0.07, 0.4, text).args
    (patch,) = model.get_wrappers("outer_sample", step_skipping.PATCH)
    (method,) = patch.start.args
    assert (method.threshold, method.max_skips, method.retention) == (0.07, 3, 0.4)
    assert method.table.ratios == table_of(new_film()).ratios
    (model,) = FramePackStepSkipping.execute(tiny.model, "first block", 0.0, 0.2).args
    assert model.get_wrappers("outer_sample", step_skipping.PATCH)[0].start.args[0].threshold == 0.06


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"method": "FasterCache"}, "method is 'FasterCache', which is not in its list: MagCache quality"),
        ({"method": "TeaCache", "ratios": '{"sigmas": [1, 0.5], "ratios": [1, 1.1]}'}, "Ratios are for MagCache"),
        ({"ratios": "1.0, 1.2"}, "The ratios are not JSON"),
    ],
)
def test_bad_settings_are_refused(tiny, widgets, message):
    with pytest.raises(ValueError, match=message):
        FramePackStepSkipping.execute(
            **{"model": tiny.model, "method": "MagCache quality", "threshold": 0.0, "retention": 0.2, **widgets}
        )


def test_a_second_skipper_is_refused_by_name(skipping, tiny, positive, new_film):
    with pytest.raises(ValueError, match="already has MagCache, "):
        skip_steps(skipping, TeaCache())
    with pytest.raises(ValueError, match="already has MagCache, "):
        FramePackCalibrateSkipping.execute(skipping, positive, new_film(), STEPS, 0.0)
    easy = values(nodes_easycache.EasyCacheNode.execute(tiny.model, 0.2, 0.15, 0.95, False))[0]
    with pytest.raises(ValueError, match="already has EasyCache, "):
        skip_steps(easy, TeaCache())
    lazy = values(nodes_easycache.LazyCacheNode.execute(tiny.model, 0.2, 0.15, 0.95, False))[0]
    with pytest.raises(ValueError, match="already has LazyCache, "):
        skip_steps(lazy, TeaCache())
    other = tiny.model.clone()
    other.model_options["transformer_options"]["rel_l1_thresh"] = 0.4
    with pytest.raises(ValueError, match="already has TeaCache of another pack, "):
        skip_steps(other, TeaCache())


def test_a_second_skipper_behind_ours_is_refused_before_weights_load(skipping, tiny, positive, new_film, monkeypatch):
    easy = values(nodes_easycache.EasyCacheNode.execute(skipping, 0.2, 0.15, 0.95, False))[0]
    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match="already has EasyCache, "):
        sample(tiny, positive, new_film(), model=easy)


def test_another_model_is_refused(tiny):
    class Other:
        model = torch.nn.Identity()

    with pytest.raises(ValueError, match="The model is Identity, not FramePack"):
        skip_steps(Other(), TeaCache())


def test_conditioning_without_history_is_still_refused_by_the_model(skipping, positive):
    latent = {"samples": torch.zeros(1, 16, 3, 4, 6)}
    with pytest.raises(ValueError, match="no FramePack history"):
        core_nodes.KSampler().sample(skipping, 5, 2, 1.0, "euler", "simple", positive, positive, latent)


def test_calibration_measures_and_its_text_serves_the_node(tiny, positive, new_film):
    watch = Watch(tiny.model)
    text, history = FramePackCalibrateSkipping.execute(watch.model, positive, new_film(), STEPS, 0.0).args
    assert watch.calls == ["C"] * STEPS
    plain = sample(tiny, positive, new_film(), steps=STEPS, max_sections=1)[0]
    assert torch.equal(film_latents(history), film_latents(plain)), "the section is the one that would be made anyway"

    table = json.loads(text)
    assert table["ratios"][0] == 1.0
    assert len(table["sigmas"]) == len(table["ratios"]) == STEPS
    assert len(set(table["ratios"])) > STEPS // 2

    (model,) = FramePackStepSkipping.execute(tiny.model, "MagCache fast", 0.0, 0.2, text).args
    watch = Watch(model)
    film = sample(tiny, positive, history, model=watch.model, steps=STEPS)[1]["samples"]
    assert torch.isfinite(film).all()
    assert watch.reports[0].steps == STEPS


def test_measured_ratios_are_those_of_the_tokens(tiny, positive, new_film):
    """By hand, from the section's tokens before the first and after the last block of every step."""
    module, before, residuals = tiny.model.model.diffusion_model, [], []
    tokens = 3 * (4 // 2) * (6 // 2)

    def enter(_, args):
        before.append((args[0][:, -tokens:], args[1].shape[1]))

    def leave(_, _args, out):
        section, text_tokens = before[-1]
        own = out if out.shape[1] == tokens else out[:, :-text_tokens][:, -tokens:]
        residuals.append(own - section)

    hooks = [
        module.transformer_blocks[0].register_forward_pre_hook(enter),
        module.single_transformer_blocks[-1].register_forward_hook(leave),
    ]
    text, _ = FramePackCalibrateSkipping.execute(tiny.model, positive, new_film(), STEPS, 0.0).args
    for hook in hooks:
        hook.remove()
    sizes = [residual.norm(dim=-1) for residual in residuals]
    expected = [1.0, *((size / last).mean().item() for last, size in pairwise(sizes))]
    assert json.loads(text)["ratios"] == pytest.approx(expected, abs=1e-4)
