"""Save Quantized FramePack Model: a MODEL -> a file of half the size that loaders open."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..framepack_core.comfy_host.quantised_weights import RECIPES
from ..framepack_core.comfy_host.saving import check_savable, save_quantised
from ..framepack_core.model.quantisation import ROWWISE
from .schema import check_choice, node_schema, widget


class FramePackSaveQuantizedModel(io.ComfyNode):
    """Core's Save Model writes a MODEL as it is; this one quantises the blocks and keeps what the loader needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeSaveQuantizedModel",
            display_name="Save Quantized FramePack Model",
            description="Writes a FramePack model with 8-bit block weights; LoRAs on it are merged in for good.",
            search_aliases=["fp8", "int8", "quantize framepack"],
            is_output_node=True,
            inputs=[
                widget(io.Model, "model", tooltip="A FramePack MODEL in bf16, with or without LoRAs."),
                widget(
                    io.Combo,
                    "weight_format",
                    options=list(RECIPES),
                    default=ROWWISE,
                    tooltip="8 bits for the matrix products of the blocks; everything else stays as it is. "
                    "fp8_e4m3fn_rowwise for RTX 40 and 50, H100 and newer; int8_convrot for RTX 20 and 30, where "
                    "ComfyUI has int8 layers.",
                ),
                widget(
                    io.String,
                    "filename_prefix",
                    default="diffusion_models/FramePack_quantized",
                    tooltip="Name below ComfyUI's output folder; a number is added, and no file is overwritten. "
                    "In diffusion_models the loaders list it.",
                ),
            ],
            outputs=[io.String.Output("file_path", display_name="file_path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, model, weight_format: str, filename_prefix: str) -> io.NodeOutput:
        check_choice("weight_format", weight_format, RECIPES)
        check_savable(model, weight_format)
        output = folder_paths.get_output_directory()
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, output)
        saved = save_quantised(model, weight_format, Path(folder) / f"{name}_{counter:05}_.safetensors")
        return io.NodeOutput(str(saved.path), ui={"text": [_sentence(saved.path.name, saved.merged)]})


def _sentence(name: str, merged: int) -> str:
    return f"{name}: LoRAs are merged into {merged} tensors." if merged else f"{name}: no LoRA was on the model."
