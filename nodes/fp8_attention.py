"""Attention in 8 bit: a patch of the MODEL."""

from comfy_api.latest import io

from ..framepack_core.comfy_host.fp8_attention import attend_in_fp8
from .schema import node_schema, widget


class FramePackFp8Attention(io.ComfyNode):
    """A patch like any other, so that every sampling node uses it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="FramePackNativeFp8Attention",
            display_name="FramePack 8-bit Attention",
            description="Computes the transformer's attention in 8 bit on Hopper cards (H100, H200): faster, at some "
            "cost in exactness. Needs the package fa3-fwd.",
            search_aliases=["FlashAttention-3", "fa3", "fp8 attention", "SageAttention", "speed"],
            inputs=[
                widget(
                    io.Model,
                    "model",
                    tooltip="A FramePack model whose attention no other node has replaced; any dtype.",
                )
            ],
            outputs=[io.Model.Output("model_out", display_name="model", tooltip="The model that attends in 8 bit.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(attend_in_fp8(model))
