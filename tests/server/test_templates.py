"""The workflows of ComfyUI's template browser: listed, served, up to date, and understood by this server's nodes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy
import pytest
from framepack_pack.scripts import workflow
from framepack_pack.scripts.host_setup import PINNED_VERSION
from framepack_pack.scripts.server import PACK_NAME
from framepack_pack.tools import build_workflows
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"
TEMPLATES = sorted(EXAMPLES.glob("*.json"))
FRONTEND_ONLY = {"MarkdownNote", "Note"}

DEMOS = [path.stem for path in TEMPLATES if path.stem.startswith("demo_")]

by_template = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)


def test_every_template_is_listed(server):
    assert sorted(server.templates()[PACK_NAME]) == [path.stem for path in TEMPLATES]


def test_every_template_has_its_api_form():
    assert [path.name for path in TEMPLATES] == sorted(path.name for path in (EXAMPLES / "api").glob("*.json"))


@by_template
def test_template_is_served_with_its_picture(server, path):
    folder = f"/api/workflow_templates/{PACK_NAME}/"
    assert json.loads(server.get(folder + path.name)) == json.loads(path.read_text(encoding="utf-8"))
    picture = server.get(f"{folder}{path.stem}.jpg")
    assert picture.startswith(b"\xff\xd8\xff"), "a JPEG"
    assert len(picture) < 40_000


@by_template
def test_template_is_up_to_date(server, object_info, path):
    """If this fails, run `python3 tools/build_workflows.py` and commit what it writes."""
    version = json.loads(server.get("/system_stats"))["system"]["comfyui_version"]
    if version != PINNED_VERSION:
        pytest.skip(f"the templates are built with the node types of ComfyUI {PINNED_VERSION}, this is {version}")
    built = build_workflows.build(path.stem, workflow.read(EXAMPLES / "api" / path.name), object_info)
    assert build_workflows.text_of(built) == path.read_text(encoding="utf-8")


@by_template
def test_template_names_existing_nodes_sockets_and_widgets(object_info, path):
    template = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in template["nodes"]}
    for node in nodes.values():
        if node["type"] in FRONTEND_ONLY:
            continue
        info = object_info[node["type"]]
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert {slot["name"] for slot in node["inputs"]} <= declared.keys()
        assert [slot["type"] for slot in node["outputs"]] == info["output"][: len(node["outputs"])]
        values = workflow.read(EXAMPLES / "api" / path.name)[str(node["id"])]["inputs"]
        assert all(value in node["widgets_values"] for value in values.values() if not workflow.is_link(value))
    for link, source, source_slot, target, target_slot, kind in template["links"]:
        assert link in nodes[source]["outputs"][source_slot]["links"]
        assert nodes[source]["outputs"][source_slot]["type"] == kind
        assert nodes[target]["inputs"][target_slot]["link"] == link


@by_template
def test_template_says_where_its_model_files_are(path):
    template = json.loads(path.read_text(encoding="utf-8"))
    files = {value for node in template["nodes"] for value in node["widgets_values"] if _is_model(value)}
    described = {model["name"] for node in template["nodes"] for model in node["properties"].get("models", ())}
    assert files == described
    assert bool(files) != (path.stem in DEMOS)


@pytest.mark.parametrize("name", DEMOS)
def test_demo_template_runs_with_what_the_pack_brings(server, name):
    """As it is, but for its length: no file was put anywhere for it."""
    prompt = workflow.read(EXAMPLES / "api" / f"{name}.json")
    prompt = workflow.set_inputs(prompt, "FramePackNativeStartHistory", total_second_length=1.0)
    prompt = workflow.set_inputs(prompt, "FramePackNativeSectionPrompts", prompts="a big pink heart spins on a meadow")
    prompt = workflow.set_inputs(prompt, "FramePackNativeSampler", steps=4)
    assert not workflow.node_ids(prompt, "LoadImage")
    (file,) = server.run(prompt)
    with av.open(io.BytesIO(server.view(file))) as container:
        frames = numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (33 if "text" in name else 37, 128, 128, 3)
    if "text" not in name:
        own = numpy.asarray(Image.open(ROOT / "docs" / "start.png").convert("RGB"))
        assert numpy.abs(frames[0].astype(int) - own).mean() < 8, "the film begins with the pack's start image"


def _is_model(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors")
