"""One primitive, two shells, and everything of the host's that should work on the MODEL."""

import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_easycache, nodes_model_advanced
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from framepack_pack.framepack_core.comfy_host import section_denoiser
from framepack_pack.framepack_core.comfy_host.conditioning import entries_for
from framepack_pack.framepack_core.comfy_host.native_model import host_attention
from framepack_pack.framepack_core.constants import LATENT_SCALE
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.pieces import GAPS, LARGEST_PIECE
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.planning.cost import activation_bytes
from framepack_pack.framepack_core.schedule import section_noise, section_sigmas
from framepack_pack.framepack_core.unipc import sample_flow_unipc
from framepack_pack.nodes.history import FramePackAppendSection, FramePackApplyHistory
from framepack_pack.nodes.sampling_parts import FramePackSigmas, FramePackUniPC
from safetensors.torch import save_file
from sampler_run import STEPS, sample

import nodes as core_nodes


def apply_history(positive, history, negative=None):
    return FramePackApplyHistory.execute(positive, history, negative).args


def values(node_output):
    return getattr(node_output, "args", node_output)


def plain_loop(tiny, positive, history):
    """The film by our core alone: module, sampler and loop, no guider, no patcher."""
    hosted = tiny.model.model.diffusion_model
    module = FramePackTransformer(hosted.config, attention=host_attention)
    module.load_state_dict(hosted.state_dict())

    def denoise(section, packed, noise):
        ((context, extra),) = entries_for(positive, history, section)
        packed = packed.scaled()

        def model(x, sigma):
            velocity = module(
                x, sigma * 1000, context, extra["pooled_output"], torch.tensor([10000.0]), packed.indices,
                *packed[:3], image_embeds=history.image_embeds,
            )  # fmt: skip
            return x - velocity * sigma.view(-1, 1, 1, 1, 1)

        return sample_flow_unipc(model, noise, section_sigmas(history, STEPS)) / LATENT_SCALE

    return film_latents(generate(history, denoise))


def by_hand(tiny, positive, history):
    """The film by nodes, section by section, with core's SamplerCustomAdvanced."""
    sampler = FramePackUniPC.execute("bh1").args[0]
    while history.next_section is not None:
        sigmas = FramePackSigmas.execute(history, STEPS, 0.0).args[0]
        section_positive, _, noise, latent = apply_history(positive, history)
        guider = values(nodes_custom_sampler.BasicGuider().execute(tiny.model, section_positive))[0]
        advanced = nodes_custom_sampler.SamplerCustomAdvanced()
        samples = values(advanced.execute(noise, guider, sampler, sigmas, latent))[0]
        history, film = FramePackAppendSection.execute(history, samples).args
    return film["samples"]


@pytest.mark.parametrize("kind", ["backward", "forward"])
def test_sampler_hand_wired_nodes_and_plain_loop_are_bit_equal(tiny, positive, new_film, kind):
    history = new_film(kind, 3)
    film = sample(tiny, positive, history)[1]["samples"]
    assert film.shape == (1, 16, 10, 4, 6)
    assert torch.isfinite(film).all()
    assert torch.equal(film, by_hand(tiny, positive, history))
    assert torch.equal(film, plain_loop(tiny, positive, history))


def test_same_seed_same_film_and_another_another(tiny, positive, new_film):
    first, again, other = (sample(tiny, positive, new_film(seed=seed))[1]["samples"] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first[:, :, 1:], other[:, :, 1:])


def test_stopping_and_going_on_gives_the_same_film(tiny, positive, new_film):
    whole = sample(tiny, positive, new_film(count=3))[1]["samples"]
    part = sample(tiny, positive, new_film(count=3), max_sections=2)[0]
    assert part.draws == 2
    assert torch.equal(sample(tiny, positive, part)[1]["samples"], whole)


def test_each_section_gets_its_own_prompt(tiny, positive, new_film):
    film = sample(tiny, positive, new_film("forward"))[1]["samples"]
    swapped = [[entry[0], dict(entry[1])] for entry in positive]
    swapped[1][0], swapped[1][1]["pooled_output"] = positive[0][0], positive[0][1]["pooled_output"]
    other = sample(tiny, swapped, new_film("forward"))[1]["samples"]
    assert torch.equal(film[:, :, :4], other[:, :, :4]), "section 0 keeps its prompt"
    assert not torch.equal(film[:, :, 4:], other[:, :, 4:])


def test_batches_are_films_of_their_own(tiny, positive, new_film):
    both = sample(tiny, positive, new_film(batch=2))[1]["samples"]
    assert both.shape == (2, 16, 7, 4, 6)
    assert not torch.equal(both[0], both[1])


def test_text_to_video_needs_no_image(tiny, positive, new_film):
    film = sample(tiny, positive, new_film(start_latent=None, image_embeds=None))[1]["samples"]
    assert film.shape == (1, 16, 6, 4, 6)
    assert torch.isfinite(film).all()


def test_end_image_changes_the_film(tiny, positive, new_film):
    end = torch.ones(1, 16, 1, 4, 6)
    film, ended = (sample(tiny, positive, new_film(end_latent=e))[1]["samples"] for e in (None, end))
    assert not torch.equal(film, ended)


def test_negative_is_used_above_cfg_1_only(tiny, positive, negative, new_film):
    plain = sample(tiny, positive, new_film())[1]["samples"]
    assert torch.equal(sample(tiny, positive, new_film(), negative=negative)[1]["samples"], plain)
    guided = sample(tiny, positive, new_film(), negative=negative, cfg=3.0)[1]["samples"]
    rescaled = sample(tiny, positive, new_film(), negative=negative, cfg=3.0, guidance_rescale=0.7)[1]["samples"]
    assert not torch.equal(guided, plain)
    assert not torch.equal(rescaled, guided)


def test_cfg_is_the_originals_formula(tiny, positive, negative, new_film):
    """One step: denoised is linear in the velocities, so two films at cfg 1 give the one at cfg 3."""
    history = new_film(count=1)
    alone = [sample(tiny, entry, history, steps=1)[1]["samples"] for entry in (positive[:1], negative)]
    guided = sample(tiny, positive[:1], history, steps=1, cfg=3.0, negative=negative)[1]["samples"]
    torch.testing.assert_close(guided, alone[1] + 3.0 * (alone[0] - alone[1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_guidance_rescale_is_the_originals_formula(tiny, positive, negative, new_film, rescale):
    """One step again: the velocities are noise minus denoised, and FP rescale_noise_cfg works on those."""
    history = new_film(count=1)
    noise = section_noise(history)

    def velocity(**settings):
        film = sample(tiny, positive[:1], history, steps=1, **settings)[0].sections[0]
        return noise - film * LATENT_SCALE

    v_positive = velocity()
    v_negative = noise - sample(tiny, negative, history, steps=1)[0].sections[0] * LATENT_SCALE
    guided = v_negative + 3.0 * (v_positive - v_negative)
    expected = rescale * guided * (v_positive.std() / guided.std()) + (1 - rescale) * guided
    got = velocity(cfg=3.0, negative=negative, guidance_rescale=rescale)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["euler", "uni_pc", "uni_pc_bh2", "dpmpp_2m", "res_multistep"])
def test_core_ksampler_runs_on_a_hand_applied_history(tiny, positive, negative, new_film, name):
    section_positive, section_negative, _, latent = apply_history(positive, new_film(), negative)
    (out,) = core_nodes.KSampler().sample(
        tiny.model, 5, 3, 1.0, name, "simple", section_positive, section_negative, latent
    )
    assert out["samples"].shape == (1, 16, 3, 4, 6)
    assert torch.isfinite(out["samples"]).all()


def test_core_samplers_and_sigmas_serve_the_sampler_node(tiny, positive, new_film):
    sigmas = torch.tensor([1.0, 0.9, 0.5, 0.0])
    kept = sigmas.clone()
    film = sample(tiny, positive, new_film(), sampler=comfy.samplers.sampler_object("uni_pc"), sigmas=sigmas)
    assert torch.isfinite(film[1]["samples"]).all()
    assert torch.equal(sigmas, kept), "core's uni_pc writes into its sigmas, which belong to another node"


def test_conditioning_without_history_is_refused(tiny, positive):
    latent = {"samples": torch.zeros(1, 16, 3, 4, 6)}
    with pytest.raises(ValueError, match="no FramePack history.*FramePack Apply History"):
        core_nodes.KSampler().sample(tiny.model, 5, 2, 1.0, "euler", "simple", positive, positive, latent)


def test_latent_of_another_size_is_refused(tiny, positive, new_film):
    section_positive, _, _, _ = apply_history(positive, new_film())
    latent = {"samples": torch.zeros(1, 16, 4, 4, 6)}
    with pytest.raises(ValueError, match=r"\(4, 4, 6\) .* needs \(3, 4, 6\)"):
        core_nodes.KSampler().sample(
            tiny.model, 5, 2, 1.0, "euler", "simple", section_positive, section_positive, latent
        )


def test_easycache_skips_steps_in_every_section(tiny, positive, new_film):
    """Its state starts afresh with each section, which is a sample() call of its own."""

    def computed(model):
        calls = []
        model.set_model_patch_replace(
            lambda args, extra: (calls.append(1), extra["original_block"](args))[1], "dit", "double_block", 0
        )
        sections = []
        history = new_film()
        while history.next_section is not None:
            begun = len(calls)
            history = sample(tiny, positive, history, model=model, steps=10, max_sections=1)[0]
            sections.append(len(calls) - begun)
        assert torch.isfinite(film_latents(history)).all()
        return sections

    cached = values(nodes_easycache.EasyCacheNode.execute(tiny.model, 1e6, 0.0, 1.0, False))[0]
    assert computed(tiny.model.clone()) == [10, 10]
    first, second = computed(cached)
    assert first == second < 10


def test_skip_layer_guidance_changes_the_film(tiny, positive, negative, new_film):
    node = SkipLayerGuidanceDiT
    run = getattr(node, "execute", None) or node().skip_guidance
    patched = values(run(tiny.model, 3.0, 0.0, 1.0, "0", "1"))[0]
    settings = {"cfg": 2.0, "negative": negative}
    plain = sample(tiny, positive, new_film(), **settings)[1]["samples"]
    assert not torch.equal(sample(tiny, positive, new_film(), model=patched, **settings)[1]["samples"], plain)


def test_model_sampling_sd3_sets_the_shift_of_core_schedules(tiny, positive, new_film):
    node = nodes_model_advanced.ModelSamplingSD3
    patched = values((getattr(node, "execute", None) or node().patch)(tiny.model, 3.0))[0]
    assert patched.get_model_object("model_sampling").shift == 3.0
    assert torch.isfinite(sample(tiny, positive, new_film(), model=patched)[1]["samples"]).all()


def test_attention_override_reaches_every_block(tiny, positive, new_film):
    calls = []

    def override(attention, *args, **kwargs):
        calls.append(1)
        return attention(*args, **kwargs)

    model = tiny.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(tiny, positive[:1], new_film(count=1), model=model, steps=1)
    config = tiny.model.model.diffusion_model.config
    assert len(calls) == config.num_layers + config.num_single_layers


@pytest.mark.parametrize(
    ("down", "up", "key"),
    [
        ("lora_down.weight", "lora_up.weight", "lora_unet_transformer_blocks_0_attn_to_q."),
        ("lora_A.weight", "lora_B.weight", "transformer.transformer_blocks.0.attn.to_q."),
        ("lora_A.weight", "lora_B.weight", "diffusion_model.single_transformer_blocks.1.proj_mlp."),
        ("lora_down.weight", "lora_up.weight", "lora_unet_clean_x_embedder_proj."),
    ],
)
def test_loras_of_musubi_and_diffusers_apply(tiny, positive, new_film, tmp_path, monkeypatch, caplog, down, up, key):
    dotted = key.rstrip(".").replace("lora_unet_", "")
    shapes = {name.replace(".", "_"): tensor.shape for name, tensor in tiny.model.model_state_dict().items()}
    shape = next(
        shape
        for name, shape in shapes.items()
        if name.endswith(dotted.split(".", 1)[-1].replace(".", "_") + "_weight")
        or name == f"diffusion_model_{dotted}_weight"
    )
    tensors = {key + down: torch.randn(2, shape[1:].numel()), key + up: torch.randn(shape[0], 2)}
    if "lora_unet" in key:
        tensors[key + "alpha"] = torch.tensor(2.0)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    monkeypatch.setattr(core_nodes.folder_paths, "get_full_path_or_raise", lambda *_: str(file))
    (patched,) = core_nodes.LoraLoaderModelOnly().load_lora_model_only(tiny.model, "lora.safetensors", 1.0)
    assert "NOT LOADED" not in caplog.text
    assert "lora key not loaded" not in caplog.text
    plain = sample(tiny, positive, new_film())[1]["samples"]
    assert not torch.equal(sample(tiny, positive, new_film(), model=patched)[1]["samples"], plain)
    assert torch.equal(sample(tiny, positive, new_film())[1]["samples"], plain), "the unpatched model is back"


def test_history_counts_in_the_memory_estimate(tiny, positive, new_film):
    history = new_film()
    section_positive = apply_history(positive, history)[0]
    shapes = {k: [v] for k, v in tiny.model.model.extra_conds_shapes(**section_positive[0][1]).items()}
    model = tiny.model.model
    alone, packed = model.memory_required([1, 16, 3, 4, 6]), model.memory_required([1, 16, 3, 4, 6], shapes)
    assert abs((packed - GAPS) / (alone - GAPS) - (3 + 2 + 2 / 8 + 16 / 64) / 3) < 1e-6


def test_the_hosts_estimate_covers_a_forward_of_the_released_size(tiny, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    monkeypatch.setattr(tiny.model.model, "manual_cast_dtype", torch.bfloat16)
    frames = {"history_1x": 2, "history_2x": 2 / 8, "history_4x": 16 / 64}
    shapes = {name: [[1, 16, count, 80, 80]] for name, count in frames.items()}
    estimate = tiny.model.model.memory_required([1, 16, 9, 80, 80], shapes)
    needed = activation_bytes(FramePackConfig(), 19257, 2, LARGEST_PIECE)
    assert 1.2 * needed < estimate - GAPS < 1.6 * needed


def test_progress_and_previews_of_all_sections(tiny, positive, new_film, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    shown = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, *update: shown.append(update), raising=True
    )
    sample(tiny, positive, new_film())
    assert [update[:2] for update in shown] == [(step, 2 * STEPS) for step in range(1, 2 * STEPS + 1)]
    width, height = shown[0][2][1].size
    assert (width, height) == (6 * 3, 4), "the frames of the section side by side"


def test_interrupt_ends_the_run_and_the_next_works(tiny, positive, new_film, monkeypatch):
    steps = []

    def stop(step, *_):
        steps.append(step)
        if len(steps) == 3:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(section_denoiser, "check_finite", lambda *_: stop(len(steps)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(tiny, positive, new_film())
    assert len(steps) <= 4
    monkeypatch.undo()
    assert torch.isfinite(sample(tiny, positive, new_film())[1]["samples"]).all()


@pytest.mark.parametrize("ending", [ValueError, comfy.model_management.InterruptProcessingException, None])
def test_memory_is_given_back_however_sampling_ends(tiny, positive, new_film, monkeypatch, ending):
    emptied = []
    monkeypatch.setattr(comfy.model_management, "soft_empty_cache", lambda *_, **__: emptied.append(1))
    model = tiny.model.clone()
    states = []

    def stop(run, *args, **kwargs):
        states.append(weakref.ref(args[0]))
        if ending and len(states) == 6:
            raise ending("stop")
        return run(*args, **kwargs)

    model.add_wrapper_with_key("apply_model", "stop", stop)
    try:
        sample(tiny, positive, new_film(), model=model)
    except (ValueError, comfy.model_management.InterruptProcessingException):
        pass
    gc.collect()
    assert emptied
    assert not any(state() is not None for state in states), "latents of the run are still alive"


def test_two_cfg_functions_are_refused(tiny, positive, negative, new_film):
    model = tiny.model.clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    settings = {"model": model, "negative": negative, "cfg": 3.0}
    assert torch.isfinite(sample(tiny, positive, new_film(), **settings)[1]["samples"]).all()
    with pytest.raises(ValueError, match="already has a cfg function.*guidance_rescale to 0"):
        sample(tiny, positive, new_film(), guidance_rescale=0.5, **settings)


def test_nan_stops_at_its_step(tiny, positive, new_film):
    model = tiny.model.clone()
    calls = []

    def broken(run, *args, **kwargs):
        calls.append(1)
        return run(*args, **kwargs) * (float("nan") if len(calls) == 6 else 1.0)

    model.add_wrapper_with_key("apply_model", "broken", broken)
    with pytest.raises(ValueError, match=r"NaN or infinity at step 2 of section 0 "):
        sample(tiny, positive, new_film(), model=model)
    assert len(calls) == 6
