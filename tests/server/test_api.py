"""The pack as a server shows it before anything runs: start-up log, node types, tooltips, example workflows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from framepack_pack.scripts import workflow
from framepack_pack.scripts.server import PACK_NAME

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows" / "api").glob("*.json"))

# Saved workflows refer to these for ever.
NODE_IDS = {
    "FramePackNativeAppendSection",
    "FramePackNativeApplyHistory",
    "FramePackNativeCalibrateSkipping",
    "FramePackNativeDecode",
    "FramePackNativeDecodeVideo",
    "FramePackNativeLoadDemo",
    "FramePackNativeLoadModel",
    "FramePackNativePlan",
    "FramePackNativeResolution",
    "FramePackNativeSampler",
    "FramePackNativeSaveQuantizedModel",
    "FramePackNativeSectionPrompts",
    "FramePackNativeSetRange",
    "FramePackNativeSigmas",
    "FramePackNativeStartHistory",
    "FramePackNativeStartImage",
    "FramePackNativeStepSkipping",
    "FramePackNativeUniPC",
}

TROUBLE = re.compile(r"traceback|error|warning|deprecat|failed", re.IGNORECASE)


def ours(object_info: dict) -> dict:
    """Node types of this pack."""
    return {name: info for name, info in object_info.items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"}


def test_pack_is_imported_without_trouble(startup_log):
    assert f"custom_nodes/{PACK_NAME}" in startup_log.replace("\\", "/")
    assert "IMPORT FAILED" not in startup_log
    assert "Traceback" not in startup_log
    lines = [line for line in startup_log.splitlines() if "framepack" in line.lower() and TROUBLE.search(line)]
    assert not lines


def test_every_node_is_registered(object_info):
    assert ours(object_info).keys() >= NODE_IDS


def test_every_node_describes_itself(object_info):
    bare = [name for name, info in ours(object_info).items() if not info["description"] or not info["display_name"]]
    assert not bare


def test_every_node_id_names_the_pack(object_info):
    assert all(name.startswith("FramePackNative") for name in ours(object_info))


def test_every_input_has_a_tooltip(object_info):
    bare = [
        f"{name}.{input_name}"
        for name, info in ours(object_info).items()
        for kind in ("required", "optional")
        for input_name, declared in info["input"].get(kind, {}).items()
        if len(declared) < 2 or not declared[1].get("tooltip")
    ]
    assert not bare


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_api_example_fits_the_node_types(object_info, path):
    assert workflow.problems(workflow.read(path), object_info) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_api_example_fits_with_the_demo_loader(object_info, path):
    prompt = workflow.with_demo_loader(workflow.read(path), "tiny")
    assert workflow.problems(prompt, object_info) == []
    assert len(workflow.node_ids(prompt, workflow.DEMO_LOADER)) == 1
    assert not {node["class_type"] for node in prompt.values()} & workflow.REPLACED_BY_DEMO.keys()
