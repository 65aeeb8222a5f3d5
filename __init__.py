"""ComfyUI-FramePack-Native: FramePack as if ComfyUI had always had it."""

from comfy_api.latest import ComfyExtension, io

from .framepack_core.comfy_host.detection import install_detection_hook
from .nodes import NODES, register_folders

WEB_DIRECTORY = "./js"


class FramePackNativeExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> FramePackNativeExtension:
    """Called once by ComfyUI when it loads the pack."""
    install_detection_hook()
    register_folders()
    return FramePackNativeExtension()
