"""Load FramePack Demo: the pack's own set first, if it is there, then the folders of models/framepack_demo."""

from dataclasses import replace

import folder_paths
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.checkpoint_set import CheckpointSet
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.model.config import ANY_DIRECTION, metadata_of
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.tiny_checkpoint import tiny_transformer_config
from framepack_pack.nodes import demo_loader
from framepack_pack.tools.demo_world.preview import still
from framepack_pack.tools.demo_world.sampling import held_out
from framepack_pack.tools.demo_world.scene import scene
from safetensors.torch import save_file
from sampler_run import sample


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """An empty models/framepack_demo with a second root, and no shipped set."""
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, demo_loader.FOLDER, ([str(root) for root in roots], set()))
    monkeypatch.setattr(demo_loader, "SHIPPED_FOLDER", tmp_path / "demo_checkpoint")
    return tmp_path


def add(folder):
    folder.mkdir(parents=True)
    (folder / "transformer.safetensors").write_bytes(b"")


def widget():
    (checkpoint,) = demo_loader.FramePackLoadDemo.define_schema().inputs
    return checkpoint


def test_without_any_set_the_widget_says_so(sets):
    assert widget().options == [demo_loader.NONE_FOUND]
    with pytest.raises(ValueError, match="checkpoint is 'shipped', which is not in its list: empty"):
        demo_loader.FramePackLoadDemo.execute("shipped")


def test_the_shipped_set_is_first_and_others_follow(sets):
    for name in ("b", "a"):
        add(sets / "first" / name)
    add(sets / "second" / "c")
    add(sets / "second" / "a")
    (sets / "first" / "no set").mkdir()
    assert widget().options == ["a", "b", "c"]
    (sets / "demo_checkpoint").mkdir()
    assert widget().options == ["a", "b", "c"], "a folder without a transformer is no set"
    add(sets / "demo_checkpoint" / "inner")
    assert widget().options == ["a", "b", "c"]
    (sets / "demo_checkpoint" / "transformer.safetensors").write_bytes(b"")
    assert widget().options == ["shipped", "a", "b", "c"]
    assert widget().default in (None, "shipped"), "the first option is the default"
    add(sets / "first" / "shipped")
    folders = demo_loader.checkpoint_sets()
    assert list(folders) == ["shipped", "a", "b", "c"]
    assert folders["shipped"] == sets / "demo_checkpoint"
    assert folders["a"] == sets / "first" / "a"


def test_the_shipped_set_loads(sets, tiny_folder, monkeypatch):
    monkeypatch.setattr(demo_loader, "SHIPPED_FOLDER", tiny_folder)
    *parts, start_image = demo_loader.FramePackLoadDemo.execute("shipped").args
    loaded = CheckpointSet(*parts)
    assert start_image.shape == (1, 128, 128, 3)
    assert 0 <= start_image.min() < 0.2 < 0.8 < start_image.max() <= 1
    assert loaded.model.model.diffusion_model.config == tiny_transformer_config()
    assert loaded.vae.latent_channels == 16


def test_the_start_image_is_one_that_training_never_showed():
    heart = scene("heart", "pink", "meadow", ["spins"])
    assert held_out(heart).item()
    drawn = still(["pink", "heart", "meadow"], (0.4, 0.6), 6, 128, 128)
    assert torch.equal((demo_loader.read_start_image()[0] * 255).round().to(torch.uint8), drawn)


def test_a_transformer_for_both_directions_is_one_whatever_its_folder(tmp_path, positive, new_film):
    folder = tmp_path / "FramePack-F1" / "demo_checkpoint"
    folder.mkdir(parents=True)
    config = replace(tiny_transformer_config(), num_layers=1, num_single_layers=1)
    weights = FramePackTransformer(config).state_dict()
    for said, name in ((ANY_DIRECTION, "transformer"), (None, "named")):
        save_file(weights, folder / f"{name}.safetensors", metadata_of(config, said))
    model = load_transformer(folder / "transformer.safetensors")
    for kind in ("backward", "forward"):
        assert sample(None, positive, new_film(kind), model=model.clone(), steps=1)[0].next_section is None
    with pytest.raises(ValueError, match="demo_checkpoint/named.safetensors was made for forward films"):
        sample(None, positive, new_film("backward"), model=load_transformer(folder / "named.safetensors"))
