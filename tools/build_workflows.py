"""Writes the workflows that people open, `example_workflows/*.json`, from those in API format.

The API files in `example_workflows/api` hold the values and links, a running ComfyUI the order and kind of inputs,
and the tables below the places, the notes and where the models are: `python3 tools/build_workflows.py`.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import workflow
from scripts.host_setup import PINNED_VERSION, ROOT, prepare, run_to_end

EXAMPLES = ROOT / "example_workflows"
REGISTRY_NAME = "framepack-native"
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
HUGGING_FACE = "https://huggingface.co/"

# File -> repository and path in it, folder below models/.
MODELS = {
    "FramePackI2V_HY_fp8_e4m3fn.safetensors": (
        "Kijai/HunyuanVideo_comfy/resolve/main/FramePackI2V_HY_fp8_e4m3fn.safetensors",
        "diffusion_models",
    ),
    "FramePack_F1_I2V_HY_20250503_fp8_e4m3fn.safetensors": (
        "kabachuha/FramePack_F1_I2V_HY_20250503_comfy/resolve/main/FramePack_F1_I2V_HY_20250503_fp8_e4m3fn.safetensors",
        "diffusion_models",
    ),
    "clip_l.safetensors": (
        "Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/text_encoders/clip_l.safetensors",
        "text_encoders",
    ),
    "llava_llama3_fp8_scaled.safetensors": (
        "Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/text_encoders/llava_llama3_fp8_scaled.safetensors",
        "text_encoders",
    ),
    "hunyuan_video_vae_bf16.safetensors": (
        "Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/vae/hunyuan_video_vae_bf16.safetensors",
        "vae",
    ),
    "sigclip_vision_patch14_384.safetensors": (
        "Comfy-Org/sigclip_vision_384/resolve/main/sigclip_vision_patch14_384.safetensors",
        "clip_vision",
    ),
}


class Group(NamedTuple):
    """A column of nodes with a title."""

    title: str
    width: int
    node_ids: tuple[str, ...]


class Page(NamedTuple):
    """How one workflow is laid out, and what its note says."""

    columns: tuple[Group, ...]
    note: str


PROMPT_GROUP = Group("Prompt and film", 400, ("7", "8"))
VIDEO_GROUP = Group("Video", 480, ("10", "11", "12"))
FROM_IMAGE = (
    Group("Models", 400, ("1", "2", "3", "4")),
    Group("Start image", 320, ("5", "6")),
    PROMPT_GROUP,
    Group("Sections", 320, ("9",)),
    VIDEO_GROUP,
)
DEMO_FROM_IMAGE = (
    Group("Model and start image", 320, ("1", "6")),
    PROMPT_GROUP,
    Group("Sections", 320, ("9",)),
    VIDEO_GROUP,
)
DEMO_WORDS = (
    "\n\nIt draws one ball, square, triangle, star or heart in 128x128 pixels, which moves left, right, up or down, "
    "stays still, spins, grows, shrinks or bounces. Words that it does not know are left out, and the log lists those "
    "that it knows. To start from another picture of that world, connect *Load Image*."
)
PAGES = {
    "image_to_video": Page(
        FROM_IMAGE,
        "**Image to video.** The film starts with the image. FramePack makes it section by section from its end to its "
        "start, so that the picture does not drift.\n\nWrite one prompt for the whole film, or several for stretches "
        "of it, such as `[0s-2s: she waves] [2s-5s: she dances]`.",
    ),
    "forward": Page(
        FROM_IMAGE,
        "**Image to video with FramePack F1.** The film is made from its start to its end, with more motion. It needs "
        "the F1 checkpoint and the mode *forward (F1)*; the other checkpoint makes poor films in this mode.",
    ),
    "text_to_video": Page(
        (Group("Models", 400, ("1", "2", "3")), PROMPT_GROUP, Group("Sections", 320, ("9",)), VIDEO_GROUP),
        "**Text to video.** Without a start image the prompt alone says what there is to see. The checkpoint was not "
        "trained for this, so an image usually gives a better film.",
    ),
    "demo_image_to_video": Page(
        DEMO_FROM_IMAGE,
        "**Image to video, nothing to download.** *Load FramePack Demo* brings a small model that comes with the pack, "
        "and a start image. The three lines of the prompt are three sections; change them." + DEMO_WORDS,
    ),
    "demo_forward": Page(
        DEMO_FROM_IMAGE,
        "**FramePack F1, nothing to download.** The same film made from its start to its end. The small model that "
        "comes with the pack does both directions." + DEMO_WORDS,
    ),
    "demo_text_to_video": Page(
        (Group("Models", 320, ("1",)), PROMPT_GROUP, Group("Sections", 320, ("9",)), VIDEO_GROUP),
        "**Text to video, nothing to download.** The prompt alone says what there is to see: size, colour, shape, "
        "motion and place, in every section. The small model that comes with the pack is weak at this: in the "
        "film that was looked at, the motions were right and the object was not." + DEMO_WORDS,
    ),
    "hand_wired_sections": Page(
        (
            Group("Models", 400, ("1", "2", "3", "4")),
            Group("Start image", 320, ("5", "6")),
            PROMPT_GROUP,
            Group("Sampling", 300, ("20", "21")),
            Group("Section made first", 320, ("30", "31", "32", "33")),
            Group("Section made second", 320, ("40", "41", "42", "43")),
            VIDEO_GROUP,
        ),
        "**Every section wired by hand.** What *FramePack Sampler* does inside, with ComfyUI's own guider and sampler: "
        "*Apply History* prepares a section, *Append Section* adds it to the film. Change a section's model, prompt or "
        "sampler here, and only the sections after it are made again. With equal settings the film is the same, bit "
        "by bit.",
    ),
}

GAP = 40
TITLE, GROUP_TITLE = 36, 50
SLOT, WIDGET = 20, 24
TEXT_BOX, PICTURE, FILM = 180, 300, 420
NOTE_WIDTH = 460


def build(name: str, prompt: workflow.Prompt, object_info: dict[str, Any]) -> dict[str, Any]:
    """Turns an API workflow into the form that the frontend opens."""
    page = PAGES[name]
    links: list[list[Any]] = []
    nodes = {node_id: _node(node_id, prompt, object_info, links) for node_id in _in_order(prompt)}
    for node in nodes.values():
        for slot, output in enumerate(node["outputs"]):
            output["links"] = [link[0] for link in links if link[1:3] == [node["id"], slot]] or None
    groups = _place(page, nodes)
    everything = [*nodes.values(), *_notes(page, prompt, first_id=max(map(int, prompt)) + 1)]
    for order, node in enumerate(everything):
        node["order"] = order
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{REGISTRY_NAME}/{name}")),
        "revision": 0,
        "last_node_id": max(node["id"] for node in everything),
        "last_link_id": len(links),
        "nodes": everything,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [NOTE_WIDTH + 5 * GAP, 4 * GAP]}},
        "version": 0.4,
    }


def _in_order(prompt: workflow.Prompt) -> list[str]:
    """Node ids, each after those that it takes something from."""
    order: list[str] = []

    def visit(node_id: str) -> None:
        for value in prompt[node_id]["inputs"].values():
            if workflow.is_link(value):
                visit(value[0])
        if node_id not in order:
            order.append(node_id)

    for node_id in prompt:
        visit(node_id)
    return order


def _node(node_id: str, prompt: workflow.Prompt, object_info: dict[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    """One node with its sockets and widget values; adds the links that end here to `links`."""
    class_type, values = prompt[node_id]["class_type"], prompt[node_id]["inputs"]
    info = object_info[class_type]
    inputs: list[dict[str, Any]] = []
    widgets: list[Any] = []
    height = 0
    for kind in ("required", "optional"):
        for input_name in info["input_order"].get(kind, []):
            declared, options = (*info["input"][kind][input_name], {})[:2]
            if not isinstance(declared, list) and declared not in WIDGET_TYPES:
                link = None
                if input_name in values:
                    link, (source, slot) = len(links) + 1, values[input_name]
                    links.append([link, int(source), slot, int(node_id), len(inputs), declared])
                optional = {"shape": 7} if kind == "optional" else {}
                inputs.append({"name": input_name, "type": declared, **optional, "link": link})
                continue
            widgets.append(values.get(input_name, options.get("default")))
            height += TEXT_BOX if options.get("multiline") else WIDGET
            if options.get("control_after_generate"):
                widgets.append("fixed")
                height += WIDGET
            if options.get("image_upload"):
                widgets.append("image")
                height += WIDGET + PICTURE
    outputs = [
        {"name": output_name, "type": output_type, "links": None}
        for output_name, output_type in zip(info["output_name"], info["output"], strict=True)
    ]
    height += SLOT * max(len(inputs), len(outputs)) + (FILM if class_type == "SaveVideo" else 10)
    return {
        "id": int(node_id),
        "type": class_type,
        "pos": [0, 0],
        "size": [0, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": _properties(class_type, widgets, info),
        "widgets_values": widgets,
    }


def _properties(class_type: str, widgets: list[Any], info: dict[str, Any]) -> dict[str, Any]:
    if info["python_module"].startswith("custom_nodes"):
        properties: dict[str, Any] = {"cnr_id": REGISTRY_NAME}
    else:
        properties = {"cnr_id": "comfy-core", "ver": PINNED_VERSION}
    properties["Node name for S&R"] = class_type
    models = [
        {"name": value, "url": HUGGING_FACE + MODELS[value][0], "directory": MODELS[value][1]}
        for value in widgets
        if isinstance(value, str) and value in MODELS
    ]
    return {**properties, "models": models} if models else properties


def _place(page: Page, nodes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Sets position and width of every node, column by column, and returns the groups around them."""
    groups = []
    left = 0
    for number, (title, width, node_ids) in enumerate(page.columns, start=1):
        top = GROUP_TITLE + TITLE
        for node_id in node_ids:
            node = nodes[node_id]
            node["pos"], node["size"][0] = [left + GAP // 2, top], width
            top += node["size"][1] + TITLE + GAP // 2
        bounding = [left, 0, width + GAP, top - TITLE]
        groups.append(
            {"id": number, "title": title, "bounding": bounding, "color": "#3f789e", "font_size": 24, "flags": {}}
        )
        left += width + 2 * GAP
    return groups


def _notes(page: Page, prompt: workflow.Prompt, first_id: int) -> list[dict[str, Any]]:
    """What the workflow does, and which files go where."""
    used = [value for node in prompt.values() for value in node["inputs"].values() if str(value) in MODELS]
    lines = [f"- `models/{MODELS[file][1]}`: [{file}]({HUGGING_FACE}{MODELS[file][0]})" for file in used]
    about = ("About this workflow", page.note, 80 + 24 * (len(page.note) // 50 + page.note.count("\n")))
    files = ("Model files", "\n".join(lines), 60 + 48 * len(lines))
    notes, top = [], GROUP_TITLE
    for number, (title, text, height) in enumerate((about, files) if lines else (about,)):
        notes.append(
            {
                "id": first_id + number,
                "type": "MarkdownNote",
                "pos": [-NOTE_WIDTH - GAP, top],
                "size": [NOTE_WIDTH, height],
                "flags": {},
                "order": 0,
                "mode": 0,
                "inputs": [],
                "outputs": [],
                "title": title,
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#653",
            }
        )
        top += height + TITLE + GAP // 2
    return notes


def text_of(built: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(built, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes all files, with the node types of the pinned ComfyUI."""
    host = prepare()
    if Path(sys.prefix) != host.python.parent.parent:
        return run_to_end([str(host.python), __file__], host.environment())

    from scripts.server import ComfyServer

    with ComfyServer(host.python, host.comfyui, ROOT, cpu=True) as server:
        object_info = server.object_info()
    for name in PAGES:
        path = EXAMPLES / f"{name}.json"
        built = build(name, workflow.read(EXAMPLES / "api" / path.name), object_info)
        path.write_text(text_of(built), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
