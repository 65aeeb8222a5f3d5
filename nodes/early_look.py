"""What FramePack Sampler asks for its early look, and where the file goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..framepack_core.comfy_host.early_look import FILE, LOOKS, OFF, EarlyLook, check_look
from ..framepack_core.comfy_host.growing_video import GrowingVideo
from ..framepack_core.comfy_host.video_file import check_folder
from .schema import check_choice, widget

PREFIX = "framepack/early_look"


def look_inputs() -> list:
    """Optional, and without cost when off."""
    return [
        widget(
            io.Vae,
            "vae",
            optional=True,
            tooltip="For early_look only: HunyuanVideo's VAE, or TAEHV, which takes far less time.",
        ),
        widget(
            io.Combo,
            "early_look",
            options=list(LOOKS),
            default=OFF,
            optional=True,
            tooltip="Looks at every section once it is made, which needs vae. preview: three pictures of it on "
            "this node. file: also a video of the film so far in ComfyUI's output folder, whole after every section; "
            "a cancelled run leaves a film.",
        ),
        widget(
            io.String,
            "filename_prefix",
            default=PREFIX,
            optional=True,
            advanced=True,
            tooltip="For early_look file only: folder and start of the name, in ComfyUI's output folder. No file is "
            "overwritten.",
        ),
    ]


def look_path(look: str, prefix: str) -> Path | None:
    """Path of the film's file, if it shall have one. Raises ValueError when it could not be written."""
    check_choice("early_look", look, LOOKS)
    if look != FILE:
        return None
    output = folder_paths.get_output_directory()
    check_folder(Path(output), "output", "--output-directory")
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    check_folder(Path(folder), "output", "--output-directory")
    return Path(folder) / f"{name}_{counter:05}_.mp4"


def make_look(look: str, vae: Any, prefix: str, films: int, metadata: Mapping[str, str]) -> EarlyLook | None:
    """Raises ValueError without a VAE, with another than HunyuanVideo's, and as look_path does."""
    check_look(look, vae)
    path = look_path(look, prefix)
    if look == OFF:
        return None
    return EarlyLook(vae, [GrowingVideo(path, metadata) for _ in range(films)] if path else [])


def show_look(look: EarlyLook | None) -> ui.PreviewVideo | None:
    """The films' files on the node."""
    if look is None or not look.paths:
        return None
    output = Path(folder_paths.get_output_directory())
    return ui.PreviewVideo(
        [
            ui.SavedResult(path.name, path.parent.relative_to(output).as_posix(), io.FolderType.output)
            for path in look.paths
        ]
    )
