"""Load FramePack Demo: a small complete checkpoint -> MODEL, CLIP, VAE, CLIP_VISION, and a picture to start from."""

from pathlib import Path

import folder_paths
import numpy
import torch
from comfy_api.latest import io
from PIL import Image

from ..framepack_core.comfy_host.checkpoint_set import load_checkpoint_set
from .schema import check_choice, node_schema, widget

FOLDER = "framepack_demo"
SHIPPED, SHIPPED_FOLDER = "shipped", Path(__file__).resolve().parents[1] / "demo_checkpoint"
START_IMAGE = Path(__file__).resolve().parents[1] / "docs" / "start.png"
TRANSFORMER = "transformer.safetensors"
NONE_FOUND = "none found in models/framepack_demo"


class FramePackLoadDemo(io.ComfyNode):
    """For trying the pack and for tests; real checkpoints have loaders of their own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeLoadDemo",
            display_name="Load FramePack Demo",
            description="Loads a small checkpoint set (transformer, encoders, VAE) from one folder, and a start image.",
            search_aliases=["framepack demo", "tiny framepack"],
            inputs=[
                widget(
                    io.Combo,
                    "checkpoint",
                    options=list(checkpoint_sets()) or [NONE_FOUND],
                    tooltip=f"{SHIPPED}: the small model in the pack's folder demo_checkpoint, which draws moving "
                    "shapes. Others: folders in models/framepack_demo, such as scripts/make_tiny_checkpoint.py "
                    "writes, with random weights that make noise.",
                )
            ],
            outputs=[
                io.Model.Output("model", display_name="model"),
                io.Clip.Output("clip", display_name="clip"),
                io.Vae.Output("vae", display_name="vae"),
                io.ClipVision.Output("clip_vision", display_name="clip_vision"),
                io.Image.Output(
                    "start_image", display_name="start_image", tooltip="A picture that the shipped set can animate."
                ),
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        sets = checkpoint_sets()
        check_choice("checkpoint", checkpoint, sets)
        return io.NodeOutput(*load_checkpoint_set(sets[checkpoint]), read_start_image())


def read_start_image() -> torch.Tensor:
    """The pack's own start image [1, 128, 128, 3], 0..1, so that templates need no file in the input folder."""
    with Image.open(START_IMAGE) as picture:
        return torch.from_numpy(numpy.array(picture.convert("RGB"), dtype=numpy.float32) / 255)[None]


def checkpoint_sets() -> dict[str, Path]:
    """Name -> folder of every set that has a transformer: the pack's own first, then those of models/framepack_demo."""
    shipped = {SHIPPED: SHIPPED_FOLDER} if (SHIPPED_FOLDER / TRANSFORMER).is_file() else {}
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths(FOLDER):
        for file in sorted(Path(root).glob(f"*/{TRANSFORMER}")):
            found.setdefault(file.parent.name, file.parent)
    return {**shipped, **{name: folder for name, folder in found.items() if name not in shipped}}


def register_folders() -> None:
    """Add models/framepack_demo to the host's model folders."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
