"""Sockets and widgets; what they do is in framepack_core."""

from .decode import FramePackDecode
from .decode_video import FramePackDecodeVideo
from .demo_loader import FramePackLoadDemo, register_folders
from .fp8_attention import FramePackFp8Attention
from .history import FramePackAppendSection, FramePackApplyHistory, FramePackStartHistory
from .model_loader import FramePackLoadModel
from .plan import FramePackPlan
from .prompts import FramePackSectionPrompts, FramePackSetRange
from .quantised_saver import FramePackSaveQuantizedModel
from .sampler import FramePackSampler
from .sampling_parts import FramePackSigmas, FramePackUniPC
from .start_image import FramePackResolution, FramePackStartImage
from .step_skipping import FramePackCalibrateSkipping, FramePackStepSkipping

__all__ = ["NODES", "register_folders"]

NODES = [
    FramePackLoadModel,
    FramePackLoadDemo,
    FramePackSaveQuantizedModel,
    FramePackSectionPrompts,
    FramePackSetRange,
    FramePackResolution,
    FramePackStartImage,
    FramePackStartHistory,
    FramePackApplyHistory,
    FramePackAppendSection,
    FramePackPlan,
    FramePackUniPC,
    FramePackSigmas,
    FramePackStepSkipping,
    FramePackCalibrateSkipping,
    FramePackFp8Attention,
    FramePackSampler,
    FramePackDecode,
    FramePackDecodeVideo,
]
