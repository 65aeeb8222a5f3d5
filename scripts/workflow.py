"""Small edits of workflows in API format: `{node id: {"class_type": ..., "inputs": {...}}}`.

Pure functions; each returns a new workflow and leaves the given one alone. A link is `[node id, output number]`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]

# Node types that load one part of the model set, and the output of the demo loader that stands in for their first.
DEMO_LOADER = "FramePackNativeLoadDemo"
REPLACED_BY_DEMO = {
    "UNETLoader": 0,
    "FramePackNativeLoadModel": 0,
    "DualCLIPLoader": 1,
    "VAELoader": 2,
    "CLIPVisionLoader": 3,
}


def read(path: Path) -> Prompt:
    """Reads a workflow in API format."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_link(value: Any) -> bool:
    """Whether an input's value is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def node_ids(prompt: Prompt, class_type: str) -> list[str]:
    """The nodes of one type."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]


def set_inputs(prompt: Prompt, class_type: str, **values: Any) -> Prompt:
    """Sets inputs of every node of a type; raises KeyError when the workflow has no such node."""
    changed = copy.deepcopy(prompt)
    found = node_ids(changed, class_type)
    if not found:
        raise KeyError(f"the workflow has no node {class_type}")
    for node_id in found:
        changed[node_id]["inputs"].update(values)
    return changed


def with_demo_loader(prompt: Prompt, checkpoint: str) -> Prompt:
    """Replaces every loader of a model file by one "Load FramePack Demo", which serves them all from a tiny set."""
    outputs = {
        node_id: REPLACED_BY_DEMO[node["class_type"]]
        for node_id, node in prompt.items()
        if node["class_type"] in REPLACED_BY_DEMO
    }
    if not outputs:
        return copy.deepcopy(prompt)
    loader = next(iter(outputs))
    changed: Prompt = {loader: {"class_type": DEMO_LOADER, "inputs": {"checkpoint": checkpoint}}}
    for node_id, node in prompt.items():
        if node_id not in outputs:
            changed[node_id] = copy.deepcopy(node)
            for name, value in node["inputs"].items():
                if is_link(value) and value[0] in outputs:
                    changed[node_id]["inputs"][name] = [loader, outputs[value[0]]]
    return changed


def problems(prompt: Prompt, object_info: dict[str, Any]) -> list[str]:
    """What a server with these node types would not understand: types, input names, outputs and their types."""
    found = []
    for node_id, node in prompt.items():
        info = object_info.get(node["class_type"])
        if info is None:
            found.append(f"node {node_id}: no node type {node['class_type']}")
            continue
        required, optional = (info["input"].get(kind, {}) for kind in ("required", "optional"))
        where = f"{node['class_type']} (node {node_id})"
        found += [f"{where}: {name} is missing" for name in required if name not in node["inputs"]]
        for name, value in node["inputs"].items():
            declared = required.get(name) or optional.get(name)
            if declared is None:
                found.append(f"{where}: no input {name}")
            elif is_link(value):
                source = object_info.get(prompt[value[0]]["class_type"], {"output": []}) if value[0] in prompt else None
                if source is None or value[1] >= len(source["output"]):
                    found.append(f"{where}: {name} is linked to {value}, which does not exist")
                elif isinstance(declared[0], str) and not _fits(source["output"][value[1]], declared[0]):
                    found.append(f"{where}: {name} takes {declared[0]}, not {source['output'][value[1]]}")
    return found


def _fits(given: Any, wanted: str) -> bool:
    names = {str(given)} if not isinstance(given, str) else set(given.split(","))
    return "*" in names or wanted == "*" or bool(names & set(wanted.split(",")))
