"""The tiny checkpoint set as files: same bytes for a seed, small, complete, with the names and widths that fit."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from framepack_pack.framepack_core import atomic_files, tiny_checkpoint
from framepack_pack.framepack_core.model.config import METADATA_KEY, read_config
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.tiny_checkpoint import write_tiny_checkpoint_set
from safetensors import safe_open
from safetensors.torch import load_file

NAMES = {f"{name}.safetensors" for name in ("transformer", "vae", "clip_l", "llama", "clip_vision")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "made" / "on demand"
    write_tiny_checkpoint_set(path)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def test_five_files_and_nothing_else(folder):
    assert {path.name for path in folder.iterdir()} == NAMES


def test_same_seed_same_bytes_and_other_seed_other_bytes(folder, tmp_path):
    write_tiny_checkpoint_set(tmp_path / "again", seed=0)
    write_tiny_checkpoint_set(tmp_path / "other", seed=1)
    first, again, other = (digests(path) for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert again == first
    assert all(other[name] != first[name] for name in NAMES)


def test_values_do_not_depend_on_torchs_global_generator(folder, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    write_tiny_checkpoint_set(tmp_path)
    assert digests(tmp_path) == digests(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_whole_set_is_below_25_megabytes(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_tensor_is_finite_and_varies(folder, name):
    for key, tensor in load_file(folder / name).items():
        assert tensor.dtype in (torch.float16, torch.bfloat16), key
        assert torch.isfinite(tensor).all(), key
        assert tensor.float().std() > 1e-3, key


def test_widths_of_the_encoders_fit_the_transformer(folder):
    config = tiny_checkpoint.tiny_transformer_config()
    assert shapes(folder / "llama.safetensors")["model.embed_tokens.weight"] == (128320, config.text_embed_dim)
    clip_l = shapes(folder / "clip_l.safetensors")["text_model.embeddings.token_embedding.weight"]
    assert clip_l == (49408, config.pooled_projection_dim)
    vision = shapes(folder / "clip_vision.safetensors")["vision_model.post_layernorm.weight"]
    assert vision == (config.image_proj_dim,)
    assert shapes(folder / "vae.safetensors")["decoder.conv_in.conv.weight"][1] == config.in_channels == 16


@pytest.mark.parametrize("name", ["clip_l", "llama", "clip_vision"])
def test_metadata_tells_the_heads(folder, name):
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["num_attention_heads"] >= 1


def test_transformer_file_tells_its_whole_config(folder):
    path = folder / "transformer.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert read_config(shapes(path), metadata) == tiny_checkpoint.tiny_transformer_config()


def test_transformer_gives_a_sane_velocity_that_obeys_its_inputs(folder):
    config = tiny_checkpoint.tiny_transformer_config()
    model = FramePackTransformer(config)
    model.load_state_dict(load_file(folder / "transformer.safetensors"))
    noise = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(1, 16, 3, 8, 12, generator=noise),
        "context": torch.randn(1, 5, config.text_embed_dim, generator=noise),
        "y": torch.randn(1, config.pooled_projection_dim, generator=noise),
        "history_1x": torch.randn(1, 16, 1, 8, 12, generator=noise),
        "history_4x": torch.randn(1, 16, 16, 8, 12, generator=noise),
        "image_embeds": torch.randn(1, 16, config.image_proj_dim, generator=noise),
        "timestep": torch.tensor([700.0]),
        "guidance": torch.tensor([10000.0]),
    }
    indices = ((1, 2, 3), (0,), (), tuple(range(4, 20)))
    with torch.inference_mode():
        velocity = model(**inputs, frame_indices=indices)
        for name, value in inputs.items():
            changed = model(**{**inputs, name: value * 0.5}, frame_indices=indices)
            assert (changed - velocity).abs().mean() > 1e-3, name
    assert velocity.shape == (1, 16, 3, 8, 12)
    assert 0.1 < velocity.std() < 10


def test_query_and_key_norms_are_about_one_and_a_half(folder):
    norms = {
        key: tensor.float().mean().item()
        for key, tensor in load_file(folder / "transformer.safetensors").items()
        if key.endswith(("norm_q.weight", "norm_k.weight"))
    }
    assert norms
    assert all(1.4 < mean < 1.6 for mean in norms.values())


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="invalid"):
        atomic_files.write_atomically(path, {"tensor": "not a tensor"}, None)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
