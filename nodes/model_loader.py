"""Load FramePack Model: a transformer file or a set of shards -> MODEL."""

import re
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..framepack_core.comfy_host.checkpoints import WEIGHT_DTYPES, load_transformer
from .schema import check_choice, node_schema, widget

FOLDER = "diffusion_models"
_SHARD_NUMBER = re.compile(r"-\d+-of-(?=\d+\.safetensors$)")


class FramePackLoadModel(io.ComfyNode):
    """Core's "Load Diffusion Model" opens single files too; this one adds shards and says what a wrong file is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeLoadModel",
            display_name="Load FramePack Model",
            description="Loads a FramePack or FramePack F1 transformer, from one file or a set of shards.",
            search_aliases=["framepack", "load framepack", "hunyuan framepack", "F1"],
            inputs=[
                widget(
                    io.Combo,
                    "model_name",
                    options=model_names(),
                    tooltip="The transformer, from models/diffusion_models. Of a set of shards, the first stands for "
                    "all. Choose FramePackI2V for backward films, FramePack F1 for forward ones.",
                ),
                widget(
                    io.Combo,
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Data type of the weights in memory. Leave at default; fp8 halves the memory of a bf16 "
                    "file at some cost in quality, _fast also computes in fp8 on cards that can. _rowwise does so at "
                    "less cost, for the blocks only (RTX 40 and 50, H100); int8_convrot is for RTX 20 and 30.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="FramePack as an ordinary MODEL.")],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        check_choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        check_choice("model_name", model_name, model_names())
        path = Path(folder_paths.get_full_path_or_raise(FOLDER, model_name))
        return io.NodeOutput(load_transformer(path, weight_dtype))


def model_names() -> list[str]:
    """Files of models/diffusion_models; of a set of shards, only the first."""
    names: dict[str, str] = {}
    for name in sorted(folder_paths.get_filename_list(FOLDER)):
        names.setdefault(_SHARD_NUMBER.sub("-", name), name)
    return list(names.values())
