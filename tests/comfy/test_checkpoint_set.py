"""The tiny set through ComfyUI's own classes: what MODEL, CLIP, VAE and CLIP_VISION sockets would carry."""

from pathlib import Path

import comfy.model_patcher
import comfy.sd
import pytest
import torch
from framepack_pack.framepack_core.comfy_host import checkpoint_set
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config, write_tiny_checkpoint_set
from safetensors.torch import load_file, save_file

PROMPT = "a cat dances"
CONFIG = tiny_transformer_config()


@pytest.fixture(scope="module", autouse=True)
def inference_mode():
    """ComfyUI runs every node so."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint_set(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> checkpoint_set.CheckpointSet:
    return checkpoint_set.load_checkpoint_set(folder)


@pytest.fixture(scope="module")
def again(folder: Path) -> checkpoint_set.CheckpointSet:
    return checkpoint_set.load_checkpoint_set(folder)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """[1, 64, 96, 3]: red grows downwards, green to the right."""
    red, green = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    return torch.stack([red, green, red * green], dim=-1).unsqueeze(0)


def encode_prompt(clip: comfy.sd.CLIP, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    ((embeds, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return embeds, extras["pooled_output"]


def test_model_is_cores_patcher_around_our_transformer(loaded):
    assert isinstance(loaded.model, comfy.model_patcher.ModelPatcher)
    assert loaded.model.model.diffusion_model.config == CONFIG


def test_model_has_the_files_weights(loaded, folder):
    tensors = load_file(folder / "transformer.safetensors")
    state_dict = loaded.model.model.diffusion_model.state_dict()
    assert state_dict.keys() == tensors.keys()
    assert all(torch.equal(state_dict[key].cpu().to(value.dtype), value) for key, value in tensors.items())


def test_prompt_has_a_token_each_and_the_transformers_widths(loaded):
    embeds, pooled = encode_prompt(loaded.clip, PROMPT)
    assert embeds.shape == (1, 4, CONFIG.text_embed_dim)  # a, cat, dances, end of turn
    assert pooled.shape == (1, CONFIG.pooled_projection_dim)
    assert torch.isfinite(embeds).all()
    assert torch.isfinite(pooled).all()


def test_other_prompt_other_embedding(loaded):
    embeds, pooled = encode_prompt(loaded.clip, PROMPT)
    other_embeds, other_pooled = encode_prompt(loaded.clip, "a cat runs")
    assert (embeds[:, 2] - other_embeds[:, 2]).abs().mean() > 0.1
    assert (pooled - other_pooled).abs().mean() > 0.05


def test_encoders_and_vae_have_the_files_weights(loaded, folder):
    modules = {
        "clip_l": loaded.clip.cond_stage_model.clip_l.transformer,
        "llama": loaded.clip.cond_stage_model.llama.transformer,
        "vae": loaded.vae.first_stage_model,
        "clip_vision": loaded.clip_vision.model,
    }
    for name, module in modules.items():
        state_dict = module.state_dict()
        for key, value in load_file(folder / f"{name}.safetensors").items():
            assert torch.equal(state_dict[key].cpu().to(value.dtype), value), (name, key)


def test_image_to_latent(loaded, picture):
    latent = loaded.vae.encode(picture)
    assert latent.shape == (1, 16, 1, 8, 12)
    assert 0.5 < latent.std() < 5


@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_latent_to_frames(loaded, latent_frames):
    latent = 2 * torch.randn(1, 16, latent_frames, 8, 12, generator=torch.Generator().manual_seed(0))
    frames = loaded.vae.decode(latent)
    assert frames.shape == (1, 4 * (latent_frames - 1) + 1, 64, 96, 3)
    assert 0.3 < frames.mean() < 0.7
    assert frames.std() > 0.05
    assert ((frames == 0) | (frames == 1)).float().mean() < 0.05  # hardly anything is clipped
    if latent_frames > 1:
        assert (frames[:, 1:] - frames[:, :-1]).abs().mean() > 0.005


def test_frames_to_latents_compresses_time_by_four(loaded, picture):
    assert loaded.vae.encode(picture.repeat(9, 1, 1, 1)).shape == (1, 16, 3, 8, 12)


def test_vae_tells_nodes_that_it_is_a_video_vae(loaded):
    vae = loaded.vae
    assert vae.latent_dim == 3
    assert vae.latent_channels == 16
    assert vae.spacial_compression_decode() == 8
    assert vae.temporal_compression_decode() == 4
    assert vae.upscale_index_formula == vae.downscale_index_formula == (4, 8, 8)
    assert vae.upscale_ratio[0](9) == 33
    assert vae.downscale_ratio[0](33) == 9
    assert 0 < vae.memory_used_decode((1, 16, 9, 8, 12), torch.float32) < 1e9
    assert 0 < vae.memory_used_encode((1, 3, 1, 64, 96), torch.float32) < 1e8


def test_tiled_decode_has_the_same_shape(loaded):
    latent = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loaded.vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=1).shape == (1, 9, 64, 64, 3)


def test_vision_tokens_fit_the_transformers_image_projection(loaded, picture):
    hidden = loaded.clip_vision.encode_image(picture, crop=False).last_hidden_state
    assert hidden.shape == (1, 16, CONFIG.image_proj_dim)
    other = loaded.clip_vision.encode_image(1 - picture, crop=False).last_hidden_state
    assert (hidden - other).abs().mean() > 0.05


def test_two_loads_compute_the_same(loaded, again, picture):
    latent = loaded.vae.encode(picture)
    assert torch.equal(latent, again.vae.encode(picture))
    assert torch.equal(loaded.vae.decode(latent), again.vae.decode(latent))
    for first, second in zip(encode_prompt(loaded.clip, PROMPT), encode_prompt(again.clip, PROMPT), strict=True):
        assert torch.equal(first, second)
    first, second = (item.clip_vision.encode_image(picture).last_hidden_state for item in (loaded, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("transformer", "MODEL"),
        ("clip_l", "CLIP-L"),
        ("llama", "LLaMA"),
        ("vae", "VAE"),
        ("clip_vision", "CLIP_VISION"),
    ],
)
def test_missing_file_is_named_with_its_purpose(folder, tmp_path, name, purpose):
    for path in folder.iterdir():
        if path.stem != name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match=rf"{name}\.safetensors is missing in .*{purpose}"):
        checkpoint_set.load_checkpoint_set(tmp_path)


def test_vae_that_lacks_a_tensor_is_refused(folder, tmp_path):
    tensors = load_file(folder / "vae.safetensors")
    del tensors["decoder.norm_out.weight"]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(RuntimeError, match=r"1 tensors missing \['decoder.norm_out.weight'\]"):
        checkpoint_set.load_vae(tmp_path / "vae.safetensors")
