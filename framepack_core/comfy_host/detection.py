"""Make core's own loaders recognise FramePack checkpoints.

The only host patch of the pack: additive and idempotent. A config class is appended to
comfy.supported_models.models, and comfy.model_detection.detect_unet_config is wrapped so that state dicts
with FramePack's marker tensors get our config; all others go to the original unchanged.
"""

import functools
from typing import Any

import comfy.model_detection
import comfy.supported_models

from ..model.checkpoint import MARKERS
from ..model.config import read_config
from ..model.quantisation import is_rowwise
from .native_model import IMAGE_MODEL, FramePackModelConfig

_MARK = "framepack_native"


def install_detection_hook() -> None:
    """Hook detection once; calling again, or from a second copy of the pack, changes nothing."""
    original = comfy.model_detection.detect_unet_config
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def detect_unet_config(state_dict: Any, key_prefix: str, *args: Any, **kwargs: Any) -> Any:
        if not all(key_prefix + marker in state_dict for marker in MARKERS):
            return original(state_dict, key_prefix, *args, **kwargs)
        metadata = kwargs.get("metadata", args[0] if args else None)
        shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
        found = {"image_model": IMAGE_MODEL, **read_config(shapes, metadata, key_prefix).as_dict()}
        return {**found, "is_rowwise": True} if is_rowwise(shapes, key_prefix) else found

    setattr(detect_unet_config, _MARK, True)
    comfy.model_detection.detect_unet_config = detect_unet_config
    comfy.supported_models.models.append(FramePackModelConfig)
