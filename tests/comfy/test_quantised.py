"""Quantised loading and saving, through our loader and core's, with LoRAs on top."""

import json
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import folder_paths
import pytest
import torch
from framepack_pack.framepack_core.atomic_files import stream_atomically
from framepack_pack.framepack_core.comfy_host import checkpoints, fp8_operations, quantised_weights, step_sources
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.comfy_host.conditioning import CHECKPOINT_ATTACHMENT
from framepack_pack.framepack_core.comfy_host.fp8_layout import TYPED, is_rows, unwrap
from framepack_pack.framepack_core.comfy_host.quantised_weights import INT8
from framepack_pack.framepack_core.comfy_host.step_skipping import STEPS_DONE, skip_steps
from framepack_pack.framepack_core.model.checkpoint import SOURCE_METADATA, read_header
from framepack_pack.framepack_core.model.config import metadata_of, read_config
from framepack_pack.framepack_core.model.fp8 import quantise_rows
from framepack_pack.framepack_core.model.quantisation import ROWWISE, is_block_layer
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.framepack_core.skipping.first_block import FirstBlockCache
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
from framepack_pack.nodes.quantised_saver import FramePackSaveQuantizedModel
from safetensors.torch import load_file, save_file
from sampler_run import sample

import nodes as core_nodes

CONFIG = tiny_transformer_config()
HAS_INT8 = quantised_weights._int8_missing() is None


@pytest.fixture
def weights(tiny_folder):
    return load_file(tiny_folder / "transformer.safetensors")


@pytest.fixture
def bf16_file(tmp_path, weights):
    path = tmp_path / "framepack.safetensors"
    save_file(weights, path, metadata_of(CONFIG))
    return path


def relative_l2(got, expected):
    return float((got - expected).norm() / expected.norm())


def film(model, tiny, positive, new_film):
    return sample(tiny, positive[:1], new_film(count=1), model=model, steps=1)[1]["samples"]


def block_layers(model):
    named = model.model.diffusion_model.named_modules()
    return {name: layer for name, layer in named if is_block_layer(name)}


def test_bf16_files_are_quantised_while_they_are_read(bf16_file, tiny, positive, new_film):
    model = load_transformer(bf16_file, ROWWISE)
    layers = block_layers(model)
    assert len(layers) > 10
    assert all(is_rows(layer.weight) for layer in layers.values())
    assert all(unwrap(layer.weight).scales.shape == (layer.weight.shape[0], 1) for layer in layers.values())
    stored = model.model.diffusion_model.state_dict()  # with the layers on the shelf
    others = [tensor for name, tensor in stored.items() if not is_block_layer(name.rpartition(".")[0])]
    assert len(others) > 10
    assert not any(is_rows(p) or p.dtype == torch.float8_e4m3fn for p in others), "only the blocks' products"
    error = relative_l2(film(model, tiny, positive, new_film), film(tiny.model, tiny, positive, new_film))
    assert 1e-4 < error < 0.2


def lora_of(model, generator_seed=0):
    """A LoRA on a block layer that is quantised and on a modulation that is not."""
    generator = torch.Generator().manual_seed(generator_seed)
    out = {}
    for name in ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.norm1.linear"):
        weight = model.model.diffusion_model.get_submodule(name).weight
        out[f"transformer.{name}.lora_A.weight"] = (
            torch.randn(4, weight.shape[1], generator=generator) / weight.shape[1]
        )
        out[f"transformer.{name}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
    return out


def with_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder, whose diffusion_models the loaders list."""
    folder = tmp_path / "output" / "diffusion_models"
    folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def save(model, recipe=ROWWISE):
    return Path(FramePackSaveQuantizedModel.execute(model, recipe, "diffusion_models/quantised").args[0])


each_recipe = pytest.mark.parametrize(
    "recipe",
    [ROWWISE, pytest.param(INT8, marks=pytest.mark.skipif(not HAS_INT8, reason="no int8 layers on this ComfyUI"))],
)


@each_recipe
def test_saved_files_open_in_both_loaders_to_the_model_quantised_on_load(
    recipe, output, bf16_file, tiny, positive, new_film
):
    path = save(load_transformer(bf16_file), recipe)
    assert path.parent == output
    assert path.stat().st_size < bf16_file.stat().st_size + 2**20
    (by_core,) = core_nodes.UNETLoader().load_unet(path.name, "default")
    films = [
        film(model, tiny, positive, new_film)
        for model in (by_core, load_transformer(path), load_transformer(bf16_file, recipe))
    ]
    assert torch.equal(films[0], films[1])
    assert torch.equal(films[0], films[2])
    assert 1e-5 < relative_l2(films[0], film(tiny.model, tiny, positive, new_film)) < 0.2


@each_recipe
def test_quantised_blocks_take_mlps_in_pieces(recipe, bf16_file, tiny, positive, new_film, monkeypatch):
    model = load_transformer(bf16_file, recipe)
    whole = film(model, tiny, positive, new_film)
    asked = []
    monkeypatch.setattr(step_sources, "mlp_piece", lambda *_: asked.append(1) or 7)
    assert relative_l2(film(model, tiny, positive, new_film), whole) < 1e-5
    assert asked


@pytest.mark.skipif(TYPED, reason="newer hosts gather weight and scales in one copy")
def test_scales_of_a_streamed_weight_are_not_moved_by_the_host(bf16_file, monkeypatch):
    """It would wait for each of them."""
    layer = next(iter(block_layers(load_transformer(bf16_file, ROWWISE)).values()))
    moved = []
    monkeypatch.setattr(comfy.quant_ops, "_move_layout_params_to_device", lambda params, _: moved.append(1) or params)
    weight, bias, _ = layer._brought_to(torch.device("meta"), torch.bfloat16)
    assert weight.device == unwrap(weight).scales.device == bias.device == torch.device("meta")
    assert is_rows(weight)
    assert not moved


@each_recipe
def test_steps_of_a_quantised_model_are_skipped(recipe, bf16_file, tiny, positive, new_film):
    model = skip_steps(load_transformer(bf16_file, recipe), FirstBlockCache(threshold=1e9))
    reports = []
    model.add_callback(STEPS_DONE, reports.append)
    made = sample(tiny, positive[:1], new_film(count=1), model=model, steps=6)[1]["samples"]
    assert torch.isfinite(made).all()
    assert [(report.computed, report.steps) for report in reports] == [(2, 6)], "the first and the last"


def test_metadata_names_the_source_and_its_direction(output, tmp_path, weights):
    source = tmp_path / "FramePack_F1_I2V_HY.safetensors"
    save_file(weights, source, metadata_of(CONFIG))
    path = save(load_transformer(source))
    header = read_header([path])
    assert read_config(header.shapes, header.metadata) == CONFIG
    assert json.loads(header.metadata[SOURCE_METADATA]) == {
        "format": ROWWISE, "source": f"{tmp_path.name}/{source.name}", "merged_patches": 0,
    }  # fmt: skip
    assert load_transformer(path).attachments[CHECKPOINT_ATTACHMENT][1] == Direction.FORWARD


@each_recipe
def test_loras_are_merged_into_saved_files_and_said(recipe, output, bf16_file, tiny, positive, new_film, caplog):
    model = with_lora(load_transformer(bf16_file))
    expected = film(model, tiny, positive, new_film)  # the host now has the LoRA merged in place
    with caplog.at_level("INFO"):
        path = save(model, recipe)
    assert "patches are merged into 2 of its tensors" in caplog.text
    got = film(load_transformer(path), tiny, positive, new_film)
    plain = film(load_transformer(bf16_file, recipe), tiny, positive, new_film)
    error, effect = relative_l2(got, expected), relative_l2(plain, expected)
    assert error < effect / 2, "nearer to the model with the LoRA than to the one without"


def test_loras_on_quantised_models_apply_and_leave(bf16_file, tiny, positive, new_film):
    quantised = load_transformer(bf16_file, ROWWISE)
    before = film(quantised, tiny, positive, new_film)
    patched = film(with_lora(quantised), tiny, positive, new_film)
    expected = film(with_lora(load_transformer(bf16_file)), tiny, positive, new_film)
    assert relative_l2(patched, expected) < relative_l2(before, expected) / 2
    assert torch.equal(film(quantised, tiny, positive, new_film), before)


def test_loras_of_offloaded_layers_are_added_in_full_precision(bf16_file, tiny):
    """As the host's partial loading does: a function on the weight instead of a merged weight."""
    quantised = load_transformer(bf16_file, ROWWISE)
    layer = quantised.model.diffusion_model.get_submodule("transformer_blocks.0.attn.to_q")
    x = torch.randn(2, 5, CONFIG.width, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    layer.weight_function = [lambda weight: weight + 1]
    torch.testing.assert_close(layer(x), before + x.sum(-1, keepdim=True), rtol=1e-4, atol=1e-3)
    layer.weight_function = []
    assert torch.equal(layer(x), before)


def test_layers_share_quantised_activations(bf16_file):
    quantised = load_transformer(bf16_file, ROWWISE)
    attention = quantised.model.diffusion_model.transformer_blocks[0].attn
    x = torch.randn(5, CONFIG.width, generator=torch.Generator().manual_seed(0))
    rows = quantise_rows(x)
    for layer in (attention.to_q, attention.to_k):
        assert relative_l2(layer(rows), layer(x)) < 0.05


def test_a_saved_model_is_saved_again_as_it_is(output, bf16_file):
    first = save(load_transformer(bf16_file))
    second = save(load_transformer(first))
    assert first != second
    tensors = [load_file(path) for path in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor.float(), tensors[1][key].float()) for key, tensor in tensors[0].items())


def test_files_are_never_overwritten(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        stream_atomically(path, [("x", torch.zeros(4))], {})
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_save_leaves_nothing(output, bf16_file, monkeypatch):
    model = load_transformer(bf16_file)
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) > 5:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        save(model)
    assert not list(output.iterdir())


def scaled_fp8(weights, dtype=torch.float8_e4m3fn):
    """As Kijai's fp8_scaled files."""
    scaled = {"scaled_fp8": torch.empty(2, dtype=dtype)}
    for key, tensor in weights.items():
        scaled[key] = tensor
        if key.endswith(".weight") and is_block_layer(key[:-7]):
            scale = tensor.abs().max().float() / torch.finfo(dtype).max
            scaled[key] = (tensor.float() / scale).to(dtype)
            scaled[key.replace(".weight", ".scale_weight")] = scale
    return scaled


def test_scaled_fp8_files_keep_their_weights_in_rowwise_compute(tmp_path, weights, tiny, positive, new_film):
    """The 8 bits of the file are used as they are; only the activations get scales of their own."""
    path = tmp_path / "scaled.safetensors"
    save_file(scaled_fp8(weights), path, metadata_of(CONFIG))
    model = load_transformer(path, ROWWISE)
    layer = model.model.diffusion_model.transformer_blocks[0].attn.to_q
    stored = load_file(path)["transformer_blocks.0.attn.to_q.weight"]
    assert torch.equal(unwrap(layer.weight).values.float(), stored.float())
    assert layer.multiplies_in_8_bit
    expected = film(tiny.model, tiny, positive, new_film)
    ours, cores = (relative_l2(film(m, tiny, positive, new_film), expected) for m in (model, load_transformer(path)))
    assert ours < cores * 1.1


def test_plain_fp8_files_keep_their_weights_in_rowwise_compute(tmp_path, weights, tiny, positive, new_film):
    path = tmp_path / "FramePackI2V_HY_fp8_e4m3fn.safetensors"
    block = {key for key in weights if key.endswith(".weight") and is_block_layer(key[:-7])}
    norms = {"transformer_blocks.0.norm1.linear.weight", "x_embedder.proj.weight"}
    plain = {key: tensor.to(torch.float8_e4m3fn) if key in block | norms else tensor for key, tensor in weights.items()}
    save_file(plain, path, metadata_of(CONFIG))
    models = [load_transformer(path, name) for name in (ROWWISE, "fp8_e4m3fn")]
    assert not models[0].model.diffusion_model.get_submodule("transformer_blocks.0.norm1.linear").multiplies_in_8_bit
    films = [film(m, tiny, positive, new_film) for m in models]
    assert relative_l2(*films) < 0.05


def core_file(weights, layers, path):
    """A file with the host's own per-layer metadata (QUANTIZATION.md)."""
    out = {key.replace("scale_weight", "weight_scale"): tensor for key, tensor in scaled_fp8(weights).items()}
    del out["scaled_fp8"]
    save_file(out, path, {**metadata_of(CONFIG), "_quantization_metadata": json.dumps({"layers": layers})})


def test_the_hosts_quantised_files_load_in_their_own_and_in_rowwise_compute(
    tmp_path, weights, tiny, positive, new_film
):
    path = tmp_path / "core.safetensors"
    layers = {key[:-7]: {"format": "float8_e4m3fn"} for key in weights if is_block_layer(key[:-7])}
    core_file(weights, layers, path)
    expected = film(tiny.model, tiny, positive, new_film)
    for name in ("default", ROWWISE):
        model = load_transformer(path, name)
        assert 1e-4 < relative_l2(film(model, tiny, positive, new_film), expected) < 0.2
        assert is_rows(model.model.diffusion_model.transformer_blocks[0].attn.to_q.weight) == (name == ROWWISE)


@pytest.mark.parametrize(
    ("make", "weight_dtype", "words"),
    [
        (scaled_fp8, "fp8_e5m2", r"\(float8_e4m3fn\) and would be quantised again by fp8_e5m2"),
        (scaled_fp8, "fp8_e4m3fn", r"quantised again by fp8_e4m3fn"),
        (
            lambda w: scaled_fp8(w, torch.float8_e5m2),
            ROWWISE,
            r"\(float8_e5m2 scaled\) and would be .* fp8_e4m3fn_rowwise",
        ),
        pytest.param(scaled_fp8, INT8, r"quantised again by int8_convrot|has no int8 layers", id="int8"),
        (lambda w: {k: t.to(torch.float8_e4m3fn) for k, t in w.items()}, "fp8_e5m2", r"\(fp8_e4m3fn\) and would be"),
    ],
)
def test_two_quantisers_are_refused_by_name_before_loading(tmp_path, weights, monkeypatch, make, weight_dtype, words):
    path = tmp_path / "mine.safetensors"
    save_file(make(weights), path, metadata_of(CONFIG))
    monkeypatch.setattr(comfy.sd, "load_diffusion_model", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr(comfy.sd, "load_diffusion_model_state_dict", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=words):
        load_transformer(path, weight_dtype)


def test_our_files_refuse_another_quantiser_in_both_loaders(output, bf16_file):
    path = save(load_transformer(bf16_file))
    with pytest.raises(ValueError, match=r"quantised already \(fp8_e4m3fn_rowwise\)"):
        load_transformer(path, "fp8_e5m2")
    with pytest.raises(ValueError, match=r"quantised already \(fp8_e4m3fn_rowwise\)"):
        core_nodes.UNETLoader().load_unet(path.name, "fp8_e4m3fn")


def test_saving_refuses_a_second_quantiser_and_other_models(output, bf16_file, tiny):
    with pytest.raises(
        ValueError, match=r"quantised already \(fp8\) and would be quantised again by fp8_e4m3fn_rowwise"
    ):
        save(load_transformer(bf16_file, "fp8_e5m2"))
    gguf = load_transformer(bf16_file)
    layer = gguf.model.diffusion_model.transformer_blocks[0].attn.to_q
    layer.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised already .GGUF"):
        save(gguf)
    with pytest.raises(ValueError, match="not FramePack"):
        save(tiny.clip.patcher)
    assert not list(output.iterdir())


def test_gguf_files_are_named(tmp_path):
    path = tmp_path / "FramePackI2V-Q4_K.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="is GGUF, which is quantised already"):
        load_transformer(path)


@pytest.mark.skipif(HAS_INT8, reason="this ComfyUI has int8 layers")
def test_int8_is_refused_where_the_host_has_none(bf16_file):
    with pytest.raises(ValueError, match="This ComfyUI has no int8 layers"):
        load_transformer(bf16_file, INT8)


@pytest.mark.parametrize("with_a_lora", [False, True])
def test_the_model_samples_with_8_bit_products(bf16_file, tiny, positive, new_film, monkeypatch, with_a_lora):
    """The route of cards whose row-wise kernel is missing; torch has its product on a CPU too."""
    dequantised = (
        with_lora(load_transformer(bf16_file, ROWWISE)) if with_a_lora else load_transformer(bf16_file, ROWWISE)
    )
    expected = film(dequantised, tiny, positive, new_film)
    products = []

    def record(device):
        products.append(device)
        return "tensorwise"

    monkeypatch.setattr(fp8_operations, "fp8_product", record)
    got = film(dequantised, tiny, positive, new_film)
    assert len(products) == len(block_layers(dequantised))
    assert 1e-4 < relative_l2(got, expected) < 0.1


def test_cards_without_bf16_are_named(monkeypatch, caplog):
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_: False)
    checkpoints.say_what_the_card_lacks()
    assert "cuda:0 has no fast bf16: FramePack is computed in float32" in caplog.text
