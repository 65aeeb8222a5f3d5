"""Load FramePack Demo: a small complete checkpoint -> MODEL, CLIP, VAE, CLIP_VISION."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..framepack_core.comfy_host.checkpoint_set import load_checkpoint_set
from .schema import check_choice, node_schema, widget

FOLDER = "framepack_demo"
NONE_FOUND = "none found in models/framepack_demo"


class FramePackLoadDemo(io.ComfyNode):
    """For trying the pack and for tests; real checkpoints have loaders of their own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeLoadDemo",
            display_name="Load FramePack Demo",
            description="Loads a small checkpoint set (transformer, encoders, VAE) from one folder.",
            search_aliases=["framepack demo", "tiny framepack"],
            inputs=[
                widget(
                    io.Combo,
                    "checkpoint",
                    options=set_names() or [NONE_FOUND],
                    tooltip="A folder in models/framepack_demo. scripts/make_tiny_checkpoint.py writes one with "
                    "random weights: it runs in seconds on a CPU and makes noise.",
                )
            ],
            outputs=[
                io.Model.Output("model", display_name="model"),
                io.Clip.Output("clip", display_name="clip"),
                io.Vae.Output("vae", display_name="vae"),
                io.ClipVision.Output("clip_vision", display_name="clip_vision"),
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        check_choice("checkpoint", checkpoint, set_names())
        folders = [Path(root) / checkpoint for root in folder_paths.get_folder_paths(FOLDER)]
        return io.NodeOutput(*load_checkpoint_set(next(folder for folder in folders if folder.is_dir())))


def set_names() -> list[str]:
    """Subfolders of models/framepack_demo that hold a transformer."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted({file.parent.name for root in roots for file in root.glob("*/transformer.safetensors")})


def register_folders() -> None:
    """Add models/framepack_demo to the host's model folders."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
