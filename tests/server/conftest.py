"""One real ComfyUI server for all tests of this folder: on the CPU, with the tiny checkpoint set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HOST = os.environ.get("COMFYUI_PATH")
ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "tiny"

collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    from framepack_pack.framepack_core.tiny_checkpoint import write_tiny_checkpoint_set
    from framepack_pack.scripts import workflow
    from framepack_pack.scripts.server import ComfyServer
    from PIL import Image


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Started once; tests must leave its queue empty."""
    base = tmp_path_factory.mktemp("comfyui")
    write_tiny_checkpoint_set(base / "models" / "framepack_demo" / CHECKPOINT)
    with ComfyServer(Path(sys.executable), Path(str(HOST)), ROOT, base=base, cpu=True) as running:
        # A wide picture: a width taken for a height shows. The name is the one in the example workflows.
        picture = Image.radial_gradient("L").resize((320, 192))
        path = tmp_path_factory.mktemp("pictures") / "example.png"
        Image.merge("RGB", (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), picture)).save(path)
        running.upload_image(path)
        yield running


@pytest.fixture(scope="session")
def startup_log(server: ComfyServer) -> str:
    """What the server printed before its first run; use it in the first file of tests only."""
    return server.log()


@pytest.fixture(scope="session")
def object_info(server: ComfyServer) -> dict[str, Any]:
    """Every node type of the server."""
    return server.object_info()


@pytest.fixture
def small() -> Callable[..., workflow.Prompt]:
    """Makes an example workflow small: `small("forward", FramePackNativeSampler={"steps": 3})`."""

    def make(name: str, **changes: dict[str, Any]) -> workflow.Prompt:
        prompt = workflow.read(ROOT / "example_workflows" / "api" / f"{name}.json")
        prompt = workflow.with_demo_loader(prompt, CHECKPOINT)
        settings = {
            "FramePackNativeStartImage": {"resolution": 80},  # with the picture's shape, 96 x 64
            "FramePackNativeStartHistory": {"total_second_length": 2.0, "width": 96, "height": 64},
            "FramePackNativeSampler": {"steps": 2},
            "FramePackNativeSigmas": {"steps": 2},
        }
        for class_type, values in settings.items():
            if workflow.node_ids(prompt, class_type):
                prompt = workflow.set_inputs(prompt, class_type, **values)
        for class_type, values in changes.items():
            prompt = workflow.set_inputs(prompt, class_type, **values)
        return prompt

    return make
