"""The host's VAE object through our own decoder: its weights, in memory that the host has freed for them."""

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.model import Decoder as HostDecoder
from torch import Tensor

from ..vae.decoder import Decoder
from ..vae.memory import bytes_needed
from ..vae.weights import UnknownVaeError, build_decoder

PATCHES = ("patches", "object_patches", "weight_wrapper_patches", "hook_patches")


class StreamedVae:
    """Frames from latents, each of which is decoded once. Holds weights on the device from the first call on."""

    def __init__(self, vae: Any) -> None:
        """Raises UnknownVaeError, which says why, for a VAE object that is not the host's own, as it was loaded."""
        model = vae.first_stage_model
        decoder = getattr(model, "decoder", None)
        if type(decoder) is not HostDecoder or decoder.tanh_out:
            raise UnknownVaeError(f"its decoder is a {type(decoder).__name__}")
        if {"decode", "forward"} & (set(vars(model)) | set(vars(decoder))):
            raise UnknownVaeError("its decode has been replaced")
        if any(getattr(vae.patcher, name, None) for name in PATCHES):
            raise UnknownVaeError("its weights are patched")
        self.vae = vae
        self._structure = build_decoder(model, torch.device("meta"), vae.vae_dtype)
        self._decoder: Decoder | None = None

    def need(self, height: int, width: int, piece: int, middle: int) -> int:
        """Bytes on the device for latents of height x width cells, weights included."""
        return bytes_needed(self._structure, height, width, piece, middle)

    def unload(self) -> None:
        """Lets go of the weights on the device."""
        self._decoder = None

    def frames(self, latents: Tensor, piece: int, middle: int) -> Iterator[Tensor]:
        """Of latents [1, 16, T, h, w]: [1, F, H, W, 3] a piece, float32 on the CPU, values 0 to 1; 4 T - 3 in all.

        Raises ValueError when the VAE makes NaN, and InterruptProcessingException between two pieces.
        """
        if self._decoder is None:  # copied from wherever the host keeps them
            self._decoder = build_decoder(self.vae.first_stage_model, self.vae.device, self.vae.vae_dtype)
        yield from _on_the_host(self._pictures(self._decoder.stream(latents, piece, middle)), self.vae)

    def _pictures(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            comfy.model_management.throw_exception_if_processing_interrupted()
            frames = next(pieces, None)
            if frames is None:
                return
            yield self.vae.process_output(frames.float())[None]


def _on_the_host(pieces: Iterator[Tensor], vae: Any) -> Iterator[Tensor]:
    """Copies pieces to the CPU while the device computes the next one."""
    before = None
    try:
        for frames in pieces:
            on_way = _Copy(frames)
            del frames
            if before is not None:
                yield before.arrived(vae)
            before = on_way
    except RuntimeError:  # a lack of memory, which must not cost the piece that was made before it
        if before is not None:
            yield before.arrived(vae)
        raise
    if before is not None:
        yield before.arrived(vae)


class _Copy:
    """A piece on its way to the CPU."""

    def __init__(self, frames: Tensor) -> None:
        self.event = None
        self.bad = frames.isnan().any()
        self.frames = frames
        if frames.is_cuda:
            self.frames = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
            self.frames.copy_(frames, non_blocking=True)
            bad, self.bad = self.bad, torch.empty((), dtype=torch.bool, pin_memory=True)
            self.bad.copy_(bad, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(frames.device))

    def arrived(self, vae: Any) -> Tensor:
        if self.event is not None:
            self.event.synchronize()
        if self.bad:
            raise ValueError(
                f"The VAE made NaN of finite latents in {vae.vae_dtype}; start ComfyUI with --bf16-vae or --fp32-vae."
            )
        return self.frames
