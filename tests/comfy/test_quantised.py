"""Quantised loading and saving, through our loader and core's, with LoRAs on top."""

import pytest
import torch
from framepack_pack.framepack_core.comfy_host import checkpoints, quantised_weights
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.comfy_host.fp8_layout import is_rows, unwrap
from framepack_pack.framepack_core.comfy_host.quantised_weights import INT8
from framepack_pack.framepack_core.model.config import metadata_of
from framepack_pack.framepack_core.model.quantisation import ROWWISE, is_block_layer
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
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
    return sample(tiny, positive, new_film(), model=model)[1]["samples"]


def block_layers(model):
    named = model.model.diffusion_model.named_modules()
    return {name: layer for name, layer in named if is_block_layer(name)}


def test_bf16_files_are_quantised_while_they_are_read(bf16_file, tiny, positive, new_film):
    model = load_transformer(bf16_file, ROWWISE)
    layers = block_layers(model)
    assert len(layers) > 10
    assert all(is_rows(layer.weight) for layer in layers.values())
    assert all(unwrap(layer.weight).scales.shape == (layer.weight.shape[0], 1) for layer in layers.values())
    others = [p for name, p in model.model.diffusion_model.named_parameters() if not is_block_layer(name.rpartition(".")[0])]
    assert not any(is_rows(p) or p.dtype == torch.float8_e4m3fn for p in others), "only the blocks' products"
    error = relative_l2(film(model, tiny, positive, new_film), film(tiny.model, tiny, positive, new_film))
    assert 1e-4 < error < 0.2
