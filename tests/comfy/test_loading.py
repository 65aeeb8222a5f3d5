"""Checkpoints through our loader node and through core's."""

import comfy.model_detection
import comfy.ops
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.detection import install_detection_hook
from framepack_pack.framepack_core.comfy_host.native_model import FramePackModel, HostTransformer
from framepack_pack.framepack_core.model.config import metadata_of
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
from framepack_pack.nodes.model_loader import FramePackLoadModel, model_names
from safetensors.torch import load_file, save_file
from sampler_run import sample

import nodes as core_nodes

SHARD = "FramePackI2V_HY/diffusion_pytorch_model-{:05d}-of-00002.safetensors"
CONFIG = tiny_transformer_config()


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models/diffusion_models of its own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "FramePackI2V_HY").mkdir()
    return tmp_path


@pytest.fixture
def weights(tiny_folder):
    return load_file(tiny_folder / "transformer.safetensors")


def same_weights(model, weights):
    loaded = model.model.diffusion_model.state_dict()
    return all(torch.equal(loaded[key].float(), tensor.float()) for key, tensor in weights.items())


def test_single_file(models, weights):
    save_file(weights, models / "framepack.safetensors", metadata_of(CONFIG))
    assert model_names() == ["framepack.safetensors"]
    model = FramePackLoadModel.execute("framepack.safetensors", "default").args[0]
    assert isinstance(model.model, FramePackModel)
    assert same_weights(model, weights)


def test_core_loader_opens_the_same_file(models, weights):
    install_detection_hook()
    save_file(weights, models / "framepack.safetensors", metadata_of(CONFIG))
    (model,) = core_nodes.UNETLoader().load_unet("framepack.safetensors", "default")
    assert isinstance(model.model, FramePackModel)
    assert model.model.diffusion_model.config == CONFIG
    assert same_weights(model, weights)


def test_the_first_shard_stands_for_all(models, weights, tiny, positive, new_film):
    keys = sorted(weights)
    for number in range(2):
        part = {key: weights[key] for key in keys[number::2]}
        save_file(part, models / SHARD.format(number + 1), metadata_of(CONFIG))
    save_file({"x": torch.zeros(1)}, models / "another.safetensors")
    assert model_names() == [SHARD.format(1), "another.safetensors"]
    model = FramePackLoadModel.execute(SHARD.format(1), "default").args[0]
    assert same_weights(model, weights)
    function, arguments = model.cached_patcher_init
    assert same_weights(function(*arguments, disable_dynamic=True), weights), "hosts load a second copy by this"
    films = [sample(tiny, positive, new_film(), model=m)[1]["samples"] for m in (model, tiny.model)]
    assert torch.equal(*films)


def test_missing_shard_is_named_before_loading(models, weights):
    save_file(weights, models / SHARD.format(1), metadata_of(CONFIG))
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 shards: diffusion_pytorch_model-00002-of-00002"):
        FramePackLoadModel.execute(SHARD.format(1), "default")


def test_other_models_are_named_before_loading(models, monkeypatch):
    save_file({"blocks.0.cross_attn.q.weight": torch.zeros(1), "patch_embedding.weight": torch.zeros(1)},
              models / "wan.safetensors")  # fmt: skip
    monkeypatch.setattr(comfy.sd, "load_diffusion_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="wan.safetensors is Wan, not a FramePack transformer"):
        FramePackLoadModel.execute("wan.safetensors", "default")


@pytest.mark.parametrize(
    ("model_name", "weight_dtype", "message"),
    [("../secret.safetensors", "default", "model_name is '../secret"), ("x", "int3", "weight_dtype is 'int3'.*fp8")],
)
def test_values_outside_their_lists_are_refused(models, model_name, weight_dtype, message):
    with pytest.raises(ValueError, match=message):
        FramePackLoadModel.execute(model_name, weight_dtype)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("FramePack_F1_I2V_HY_fp8.safetensors", "forward", "backward"),
        ("FramePackI2V_HY.safetensors", "backward", "forward"),
    ],
)
def test_released_checkpoints_refuse_the_other_direction(models, weights, positive, new_film, file, right, wrong):
    save_file(weights, models / file, metadata_of(CONFIG))
    model = FramePackLoadModel.execute(file, "default").args[0]
    assert sample(None, positive, new_film(right), model=model.clone(), steps=1)[0].next_section is None
    with pytest.raises(ValueError, match=f"{file} was made for {right} films, but the film is {wrong}"):
        sample(None, positive, new_film(wrong), model=model.clone())


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_fp8_weights_are_stored_and_run(models, weights, positive, new_film, tiny, weight_dtype):
    save_file(weights, models / "framepack.safetensors", metadata_of(CONFIG))
    model = FramePackLoadModel.execute("framepack.safetensors", weight_dtype).args[0]
    assert model.model.diffusion_model.transformer_blocks[0].ff.net[2].weight.dtype in (
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
    assert torch.isfinite(sample(tiny, positive, new_film(), model=model)[1]["samples"]).all()


def test_scaled_fp8_files_run_close_to_the_original(models, weights, positive, new_film, tiny):
    """The format of Kijai's fp8_scaled files: weight / scale in fp8, scale_weight beside it."""
    scaled = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in weights.items():
        if "transformer_blocks" in key and key.endswith(".weight") and tensor.ndim == 2 and "norm" not in key:
            scale = tensor.abs().max().float() / 448
            scaled[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale
        else:
            scaled[key] = tensor
    save_file(scaled, models / "scaled.safetensors", metadata_of(CONFIG))
    model = FramePackLoadModel.execute("scaled.safetensors", "default").args[0]
    film, expected = (sample(tiny, positive, new_film(), model=m)[1]["samples"] for m in (model, tiny.model))
    assert 1e-4 < float((film - expected).norm() / expected.norm()) < 0.2


def test_output_is_computed_in_float32_whatever_the_weights_are(monkeypatch):
    """With weights in the compute dtype the host's layers do not cast, unless they are told to."""
    module = HostTransformer("framepack", torch.bfloat16, None, comfy.ops.disable_weight_init, **CONFIG.as_dict())
    seen = []
    module.proj_out.register_forward_hook(lambda _, given, out: seen.append((given[0].dtype, out.dtype)))
    torch.nn.init.normal_(module.proj_out.weight)
    assert module.proj_out.weight.dtype == torch.bfloat16
    module.proj_out(torch.randn(1, 2, CONFIG.width))
    assert seen == [(torch.float32, torch.float32)]


def test_prefixed_checkpoints_load(models, weights):
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}
    save_file(prefixed, models / "prefixed.safetensors", metadata_of(CONFIG))
    assert same_weights(FramePackLoadModel.execute("prefixed.safetensors", "default").args[0], weights)


def test_the_hook_is_installed_once_and_leaves_others_alone():
    install_detection_hook()
    hooked, count = comfy.model_detection.detect_unet_config, len(comfy.supported_models.models)
    install_detection_hook()
    assert comfy.model_detection.detect_unet_config is hooked
    assert len(comfy.supported_models.models) == count
    flux = {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1), "img_in.weight": torch.zeros(8, 64)}
    assert hooked.__wrapped__ is not hooked
    try:
        expected = hooked.__wrapped__(dict(flux), "")
    except KeyError as error:
        expected = error.args
    try:
        got = hooked(dict(flux), "")
    except KeyError as error:
        got = error.args
    assert got == expected


def test_bf16_is_the_reference_rounding(tiny_folder, positive, new_film, tiny):
    """In bf16 denoised is formed from the rounded state: x0 + v sigma is exactly a bf16 number."""
    model = comfy.sd.load_diffusion_model(
        str(tiny_folder / "transformer.safetensors"), model_options={"dtype": torch.bfloat16}
    )
    seen = []

    def watch(run, *args, **kwargs):
        velocity = run(*args, **kwargs)
        seen.append((args[0].float(), velocity))
        return velocity

    model.add_wrapper_with_key("diffusion_model", "watch", watch)
    denoised = []
    model.add_wrapper_with_key(
        "predict_noise", "keep", lambda run, *a, **k: (denoised.append(run(*a, **k)), denoised[-1])[1]
    )
    if model.model.get_dtype() != torch.bfloat16 or model.model.manual_cast_dtype not in (None, torch.bfloat16):
        model.model.manual_cast_dtype = torch.bfloat16
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    sample(tiny, positive[:1], new_film(count=1), model=model, sigmas=sigmas)
    for (x, velocity), x0, sigma in zip(seen, denoised, sigmas, strict=False):
        assert torch.equal(x, x.to(torch.bfloat16).float())
        torch.testing.assert_close(x0, x - velocity.float() * sigma, atol=1e-6, rtol=0)
