"""The tiny checkpoint set, loaded once, and a prompt and start image for it."""

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
import torch
from framepack_pack.framepack_core.comfy_host.attention_choice import flash3_function
from framepack_pack.framepack_core.comfy_host.checkpoint_set import CheckpointSet, load_checkpoint_set
from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompts
from framepack_pack.framepack_core.history import History, new_history
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward
from framepack_pack.framepack_core.tiny_checkpoint import write_tiny_checkpoint_set

PLANS = {"backward": plan_backward, "forward": plan_forward}
WINDOW = 3


@pytest.fixture(autouse=True)
def inference_mode():
    """ComfyUI runs every node so."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint_set(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> CheckpointSet:
    with torch.inference_mode():
        return load_checkpoint_set(tiny_folder)


@pytest.fixture(scope="session")
def positive(tiny):
    with torch.inference_mode():
        return encode_prompts(tiny.clip, "[0: a cat walks][1: a dog runs far away]", 10.0)


@pytest.fixture(scope="session")
def negative(tiny):
    with torch.inference_mode():
        return encode_prompts(tiny.clip, "blurry", 10.0)


@pytest.fixture
def new_film():
    """new_film("backward", 2): an empty history of small sections with a start image and its vision features."""

    def make(kind: str = "backward", count: int = 2, batch: int = 1, seed: int = 7, **changes) -> History:
        generator = torch.Generator().manual_seed(3)
        images = {
            "start_latent": torch.randn(batch, 16, 1, 4, 6, generator=generator),
            "image_embeds": torch.randn(batch, 16, 36, generator=generator),
        }
        return new_history(PLANS[kind](count, WINDOW), seed, 48, 32, **{**images, **changes})

    return make


@pytest.fixture
def flash3_package(monkeypatch):
    """Puts a package of FlashAttention-3's interface where it would be installed: tensors are [B, L, heads, d]."""

    def install(name, **content):
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(package).update(content)
        monkeypatch.setitem(sys.modules, name, package)
        flash3_function.cache_clear()

    yield install
    flash3_function.cache_clear()
