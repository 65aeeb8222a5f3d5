"""Step tables: the same films with and without, made once, gone after the run, and their layers out of memory's way."""

import copy
import gc
import weakref

import comfy.hooks
import comfy.samplers
import comfy.sd
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.comfy_host.section_denoiser import unipc_sampler
from framepack_pack.framepack_core.comfy_host.shelf import Shelved, shelved_bytes
from framepack_pack.framepack_core.comfy_host.step_sources import Call
from framepack_pack.framepack_core.model.config import metadata_of
from framepack_pack.framepack_core.model.step_table import StepTable
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.nodes.history import FramePackApplyHistory
from safetensors.torch import load_file, save_file
from sampler_run import STEPS, sample

import nodes as core_nodes


@pytest.fixture
def made(monkeypatch):
    """How many timesteps each call of step_inputs made."""
    counts = []
    right = FramePackTransformer.step_inputs

    def counting(self, timesteps, *args, **kwargs):
        counts.append(len(timesteps))
        return right(self, timesteps, *args, **kwargs)

    monkeypatch.setattr(FramePackTransformer, "step_inputs", counting)
    return counts


@pytest.fixture
def without_tables(monkeypatch):
    """Switches the memory of the tables off; everything is then made at every step."""

    def switch():
        monkeypatch.setattr(StepTable, "look_up", lambda self, prompt, timestep, schedule, make: make([timestep])[0])

    return switch


def film(tiny, positive, history, **settings):
    return sample(tiny, positive, history, **settings)[1]["samples"]


@pytest.mark.parametrize(
    "settings", [{}, {"cfg": 2.0}, {"cfg": 2.0, "guidance_rescale": 0.5}], ids=["alone", "cfg", "rescale"]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_films_are_bit_equal_with_and_without(
    tiny, positive, negative, new_film, made, without_tables, settings, batch
):
    settings = {**settings, "negative": negative}
    history = new_film(count=2, batch=batch)
    tabled = film(tiny, positive, history, **settings)
    prompts = 3 if "cfg" in settings else 2
    assert made == [STEPS] * prompts * batch, "one visit of the layers for each prompt and start image"
    made.clear()
    without_tables()
    assert torch.equal(film(tiny, positive, history, **settings), tabled)
    assert set(made) == {1}
    assert len(made) == 2 * STEPS * batch * (2 if "cfg" in settings else 1)


@pytest.mark.parametrize(("name", "invented"), [("euler", 0), ("heun", 0), ("dpmpp_2s_ancestral", 3), ("dpmpp_sde", 4)])
def test_levels_that_a_sampler_invents_are_made_once(tiny, positive, new_film, made, without_tables, name, invented):
    history = new_film(count=3)
    sampler = comfy.samplers.sampler_object(name)
    tabled = film(tiny, positive[:1], history, sampler=sampler)
    assert sorted(made) == [1] * invented + [STEPS], "for three sections"
    made.clear()
    without_tables()
    assert torch.equal(film(tiny, positive[:1], history, sampler=sampler), tabled)
    assert len(made) > 1 + invented


def test_a_section_wired_by_hand_has_a_table_of_its_own(tiny, positive, new_film, made):
    section_positive, _, _, latent = FramePackApplyHistory.execute(positive, new_film()).args
    for run in (1, 2):
        core_nodes.KSampler().sample(
            tiny.model, 5, 3, 1.0, "euler", "simple", section_positive, section_positive, latent
        )
        assert made == [3] * run


def test_prompts_that_went_by_are_forgotten(tiny, positive, new_film, monkeypatch):
    sizes = []
    right = StepTable.next_section
    monkeypatch.setattr(StepTable, "next_section", lambda self: (sizes.append(len(self)), right(self))[1])
    film(tiny, positive, new_film("forward", 5))
    assert sizes == [0, STEPS, 2 * STEPS, STEPS, STEPS], "the first prompt holds in section 0 alone"


def test_prompts_of_unequal_length_in_one_conditioning(tiny, positive, new_film):
    """Padded with a mask, as other encoders give them; padding is cut off and makes no difference."""
    (context, extra), history = positive[1], new_film("forward", 1)
    alone = [[context, {k: v for k, v in extra.items() if k != "framepack_range"}]]
    length = context.shape[1]
    padded = torch.cat([context, torch.randn(1, 5, context.shape[2])], dim=1)
    mask = (torch.arange(length + 5) < length).long().unsqueeze(0)
    masked = [[padded, {**alone[0][1], "attention_mask": mask}]]
    assert torch.equal(film(tiny, masked, history), film(tiny, alone, history))

    both = new_film("forward", 1, batch=2)
    shorter = torch.cat([mask, (torch.arange(length + 5) < 9).long().unsqueeze(0)])
    two = [[padded.repeat(2, 1, 1), {**alone[0][1], "attention_mask": shorter}]]
    films = film(tiny, two, both)
    cut = [[padded[:, :9], alone[0][1]]]
    torch.testing.assert_close(films[:1], film(tiny, alone, both)[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(films[1:], film(tiny, cut, both)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        "transformer_blocks.0.norm1.linear",
        "single_transformer_blocks.1.norm.linear",
        "norm_out.linear",
        "context_embedder.token_refiner.refiner_blocks.0.ff.net.2",
        "time_text_embed.guidance_embedder.linear_1",
        "image_projection.up",
    ],
)
def test_loras_reach_the_shelved_layers(tiny, positive, new_film, tmp_path, monkeypatch, caplog, layer):
    """As if the layer had the sum in its file; and the model without is unchanged after."""
    plain = film(tiny, positive[:1], new_film(count=1))
    weight = tiny.model.model_state_dict()[f"diffusion_model.{layer}.weight"]
    down, up = torch.randn(2, weight.shape[1]), 0.1 * torch.randn(weight.shape[0], 2)
    key = "lora_unet_" + layer.replace(".", "_")
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    monkeypatch.setattr(
        core_nodes.folder_paths, "get_full_path_or_raise", lambda *_: str(tmp_path / "lora.safetensors")
    )
    (patched,) = core_nodes.LoraLoaderModelOnly().load_lora_model_only(tiny.model, "lora.safetensors", 1.0)
    assert "lora key not loaded" not in caplog.text
    assert "NOT LOADED" not in caplog.text
    got = film(tiny, positive[:1], new_film(count=1), model=patched)
    assert torch.equal(film(tiny, positive[:1], new_film(count=1)), plain)

    kept = weight.clone()
    weight.add_(up @ down)
    try:
        expected = film(tiny, positive[:1], new_film(count=1))
    finally:
        weight.copy_(kept)
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_host_sees_the_state_but_not_the_layers(tiny):
    """What the host's loaders walk, and what state dicts hold."""
    model = tiny.model.model
    with torch.device("meta"):
        names = set(FramePackTransformer(model.diffusion_model.config).state_dict())
    assert set(model.diffusion_model.state_dict()) == names

    listed = {name for name, _ in model.diffusion_model.named_parameters()}
    hidden = names - listed
    assert {"norm_out.linear.weight", "transformer_blocks.1.norm1_context.linear.bias"} < hidden
    parts = ("norm1", "norm1_context", "norm", "norm_out", "time_text_embed", "context_embedder", "image_projection")
    assert all(any(part in name.split(".") for part in parts) for name in hidden)
    assert not any(name.startswith("clean_x_embedder") or ".attn." in name.split("refiner")[0] for name in hidden)
    loading = [entry[-2] if isinstance(entry[-2], torch.nn.Module) else entry[-3] for entry in tiny.model._load_list()]
    shelved = {layer for part in model.modules() if isinstance(part, Shelved) for layer in part.module.modules()}
    assert loading
    assert not shelved & set(loading)
    sizes = {name: tensor.nbytes for name, tensor in model.diffusion_model.state_dict().items()}
    assert shelved_bytes(model) == sum(sizes[name] for name in hidden)


def test_moving_the_model_leaves_the_shelf(tiny):
    """As a full load of the host does."""
    moved = copy.deepcopy(tiny.model.model.diffusion_model).to("meta")
    assert moved.proj_out.weight.device.type == "meta"
    assert moved.norm_out.linear.weight.device.type == "cpu"
    assert tiny.model.model.diffusion_model.proj_out.weight.device.type == "cpu"


def test_weights_load_through_the_shelf(tiny):
    """Strictly, and into it: a checkpoint with other numbers gives another film."""
    module = copy.deepcopy(tiny.model.model.diffusion_model)
    state = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    assert not any(module.load_state_dict(state, strict=True))
    assert torch.equal(module.norm_out.linear.weight, state["norm_out.linear.weight"])
    missing, unexpected = module.load_state_dict(
        {"norm_out.linear.weight": state["norm_out.linear.weight"]}, strict=False
    )
    assert "norm_out.linear.bias" in missing
    assert not unexpected


def test_nothing_stays_after_a_run(tiny, positive, negative, new_film, monkeypatch):
    tables, right = [], StepTable.__init__
    monkeypatch.setattr(StepTable, "__init__", lambda self: (tables.append(weakref.ref(self)), right(self))[1])
    module = tiny.model.model
    before = {name: sorted(vars(part)) for name, part in module.named_modules()}
    options = copy.deepcopy(tiny.model.model_options)
    film(tiny, positive, new_film(), negative=negative, cfg=2.0)
    gc.collect()
    assert tables
    assert not any(table() is not None for table in tables)
    assert {name: sorted(vars(part)) for name, part in module.named_modules()} == before
    assert tiny.model.model_options == options


def test_saved_models_have_the_loras_of_shelved_layers(tiny, positive, new_film, tmp_path):
    layer = "diffusion_model.transformer_blocks.0.norm1.linear.weight"
    plain = tiny.model.model_state_dict()[layer].clone()
    patched = tiny.model.clone()
    patched.add_patches({layer: ("diff", (torch.ones_like(plain),))})
    before = film(tiny, positive[:1], new_film(count=1), model=patched)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patched)
    saved = load_file(tmp_path / "saved.safetensors")[f"model.{layer}"]
    torch.testing.assert_close(saved, plain + 1)
    assert torch.equal(film(tiny, positive[:1], new_film(count=1), model=patched), before), "patched once, not twice"
    film(tiny, positive[:1], new_film(count=1))
    assert torch.equal(tiny.model.model_state_dict()[layer], plain)


def test_hooked_loras_reach_shelved_layers_and_are_not_remembered(tiny, positive, new_film, made):
    """Weight hooks on a conditioning: as the same LoRA on the model; beside it the same prompt without."""
    layer = "diffusion_model.transformer_blocks.0.norm1.linear.weight"
    patch = {layer: ("diff", (torch.randn_like(tiny.model.model_state_dict()[layer]),))}
    patched = tiny.model.clone()
    patched.add_patches(patch)
    expected = film(tiny, positive[:1], new_film(count=1), model=patched)

    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=1.0)
    hook.weights, hook.need_weight_init = patch, False
    hooks = comfy.hooks.HookGroup()
    hooks.add(hook)
    hooked = [[positive[0][0], {**positive[0][1], "hooks": hooks}]]
    made.clear()
    got = film(tiny, hooked, new_film(count=1))
    assert made == [1] * STEPS
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    made.clear()
    film(tiny, hooked, new_film(count=1), negative=positive[:1], cfg=2.0)
    assert sorted(made) == [1] * STEPS + [STEPS]
    assert not torch.equal(film(tiny, positive[:1], new_film(count=1)), got)


def test_the_loader_tells_the_host_what_it_has_to_place(tiny):
    model = tiny.model.model
    sizes = [tensor.nbytes for tensor in model.state_dict().values()]
    assert tiny.model.model_size() == sum(sizes) - shelved_bytes(model)


def test_our_sampler_names_its_levels_and_a_wrapper_is_not_overlooked(
    tiny, positive, new_film, monkeypatch, without_tables
):
    """Only the schedule is read from the device. Samplers that shift sigmas on their way (Detail Daemon) are asked."""
    reads, right = [], Call.timesteps
    monkeypatch.setattr(Call, "timesteps", lambda self, sigmas: (reads.append(len(sigmas)), right(self, sigmas))[1])
    history = new_film(count=2)
    plain = film(tiny, positive[:1], history)
    assert reads == [STEPS + 1] * 2
    reads.clear()

    def shifting(model, x, sigmas, extra_args, **kwargs):
        return unipc_sampler().sampler_function(
            lambda x, sigma, **options: model(x, sigma * 0.98, **options), x, sigmas, extra_args, solver="bh1", **kwargs
        )

    sampler = comfy.samplers.KSAMPLER(shifting)
    shifted = film(tiny, positive[:1], history, sampler=sampler)
    assert reads == ([STEPS + 1] + [1] * STEPS) * 2
    assert not torch.equal(shifted, plain)
    without_tables()
    assert torch.equal(film(tiny, positive[:1], history, sampler=sampler), shifted)


def test_history_is_embedded_once_a_section(tiny, positive, negative, new_film, monkeypatch):
    shapes = []
    right = FramePackTransformer.section_inputs

    def counting(self, x, *args):
        shapes.append(tuple(x.shape))
        return right(self, x, *args)

    monkeypatch.setattr(FramePackTransformer, "section_inputs", counting)
    film(tiny, positive, new_film(count=2, batch=2), negative=negative, cfg=2.0)
    assert shapes == [(2, 16, 3, 4, 6)] * 2 * 2, "for each section that of both conditionings"


def test_conditions_wait_on_the_device_of_the_run(tiny, positive, new_film):
    """Made ready once a section: what extra_conds gives needs no further transfer."""
    section_positive, _, _, latent = FramePackApplyHistory.execute(positive, new_film()).args
    given = {**section_positive[0][1], "cross_attn": section_positive[0][0], "noise": latent["samples"]}
    conds = tiny.model.model.extra_conds(**given, device=torch.device("meta"))
    tensors = {name: cond.cond for name, cond in conds.items() if isinstance(cond.cond, torch.Tensor)}
    assert set(tensors) == {
        "c_crossattn", "y", "guidance", "image_embeds", "history_1x", "history_2x", "history_4x",
    }  # fmt: skip
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}


def test_shelved_layers_in_scaled_fp8_take_loras(tiny, tiny_folder, positive, new_film, tmp_path):
    """Weights with a scale beside them, as the host's formats have it, and a LoRA on top."""
    config = tiny.model.model.diffusion_model.config
    scaled = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in load_file(tiny_folder / "transformer.safetensors").items():
        if ".norm1.linear.weight" in key or ("refiner_blocks.0.ff" in key and key.endswith(".weight")):
            scale = tensor.abs().max().float() / 448
            scaled[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale
        else:
            scaled[key] = tensor
    save_file(scaled, tmp_path / "scaled.safetensors", metadata_of(config))
    layer = "diffusion_model.transformer_blocks.0.norm1.linear.weight"
    change = -0.5 * tiny.model.model_state_dict()[layer]  # inside the range of the scale
    films = []
    for model in (load_transformer(tmp_path / "scaled.safetensors"), tiny.model):
        patched = model.clone()
        patched.add_patches({layer: ("diff", (change,))})
        films += [film(tiny, positive[:1], new_film(count=1), model=m) for m in (model, patched)]
    scaled_plain, scaled_patched, plain, patched = films
    effect = (patched - plain).norm()
    assert 1e-4 < (scaled_patched - patched).norm() / patched.norm() < 0.2
    assert (scaled_patched - scaled_plain - (patched - plain)).norm() < 0.5 * effect


def test_bf16_levels_are_what_the_original_sees(tiny, tiny_folder, positive, new_film, monkeypatch):
    """883.5 is 884, 10000 is 9984, wherever the number comes from."""
    model = comfy.sd.load_diffusion_model(
        str(tiny_folder / "transformer.safetensors"), model_options={"dtype": torch.bfloat16}
    )
    model.model.manual_cast_dtype = torch.bfloat16
    seen = []
    right = FramePackTransformer.step_inputs

    def watch(self, timesteps, guidance, *args, **kwargs):
        seen.append(([(float(t), t.dtype) for t in timesteps], float(guidance), guidance.dtype))
        return right(self, timesteps, guidance, *args, **kwargs)

    monkeypatch.setattr(FramePackTransformer, "step_inputs", watch)
    sigmas = torch.tensor([1.0, 0.883495, 0.0])
    expected = ([(1000.0, torch.bfloat16), (884.0, torch.bfloat16)], 9984.0, torch.bfloat16)
    film(tiny, positive[:1], new_film(count=1), model=model, sigmas=sigmas)
    film(
        tiny,
        positive[:1],
        new_film(count=1),
        model=model,
        sigmas=sigmas,
        sampler=comfy.samplers.sampler_object("euler"),
    )
    assert seen == [expected, expected]
