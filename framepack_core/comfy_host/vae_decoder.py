"""The host's VAE as the `decode` of the core: sized by free memory, and smaller where memory runs out."""

import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ..constants import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from ..decoding import CHUNK_MIN, CHUNKS, chunk_spans, collect, join_spans
from ..history import film_frames
from ..kernels.device import convolution_runs_on
from ..vae.decoder import MIDDLE, PIECE
from ..vae.weights import UnknownVaeError
from .streamed_vae import StreamedVae

logger = logging.getLogger(__name__)

SAFETY = 1.1  # estimates are the host's, which lie above what is used, but do not know the allocator's gaps
TILES = (64, 32, 16)  # latent cells a side; 32 (256 pixels) is what the original's VAE uses, FP demo_gradio.py
TILED_CHUNK = 5  # latents; the original's VAE again
WARM_UP = 6  # latents that a new start in the middle of a film decodes again, for what they leave to the next ones
STREAMED = (PIECE, 1)  # latents a piece of our own decoder
streams_on = convolution_runs_on  # elsewhere our own decoder is no faster than the host's


class Rung(NamedTuple):
    """One way to decode; lower rungs need less memory and give the same number of frames."""

    chunk: int  # latents per call of the VAE
    tile: int = 0  # latent cells a side; 0: whole pictures
    on_cpu: bool = False
    piece: int = 0  # latents a piece of our own decoder, whose middle sees `chunk` of them; 0: the host's decoder

    def __str__(self) -> str:
        if self.piece:
            return f"each latent once, {self.piece} at a time"
        tile = f", tiles of {self.tile * PIXELS_PER_LATENT} pixels" if self.tile else ""
        return f"{self.chunk} latents at a time{tile}{', on the CPU' if self.on_cpu else ''}"


def ladder(chunk: int, height: int, width: int, tile: int = 0, streamed: bool = False) -> list[Rung]:
    """All rungs from the wanted one down: smaller chunks, then smaller tiles, then the CPU. Sizes in latents.

    streamed: our own decoder in the place of chunks, with less and less on the device, less than any of them needs.
    """
    if streamed:
        rungs = [Rung(chunk, piece=piece) for piece in STREAMED]
    else:
        rungs = [Rung(chunk, tile)]
        while chunk > CHUNK_MIN:
            chunk = max(math.ceil(chunk / 2), CHUNK_MIN)
            rungs.append(Rung(chunk, tile))
    smaller = [size for size in TILES if size < min(max(height, width), tile or math.inf)]
    tiled = min(rungs[0].chunk, TILED_CHUNK)
    return [*rungs, *(Rung(tiled, size) for size in smaller), Rung(tiled, on_cpu=True)]


class VaeDecoder:
    """Latents [B, 16, T, h, w] to frames [B, 4 T - 3, H, W, 3], float32 on the CPU, values 0 to 1.

    Through our own decoder where that is faster, else through the host's. Goes down the ladder when memory runs out,
    repeats only frames that it has not given yet, and stays there for the rest of its life, which is one run.
    vae.decode is not used, because it answers a lack of memory itself, with tiles that are not said; what is called
    instead is what it calls: load_models_gpu, the model's decode, process_output.
    """

    def __init__(self, vae: Any, shape: tuple[int, ...], chunk: int = 0, tile: int = 0, beside: bool = False) -> None:
        """shape: of the longest stretch, [B, 16, T, h, w]. chunk, tile: in latents; 0: as memory allows, no tiles.

        Frees device memory for the VAE, by the host's rules, to see what fits; beside: only what the lowest rung on the
        device needs, so that a model that is in use next can stay where it is; and our decoder lets go of its weights
        after every call.
        """
        self.vae = vae
        self.shape = shape
        self._beside = beside
        self._own = None if tile else own_decoder(vae)
        streamed = self._own is not None
        longest = min(shape[2], MIDDLE) if streamed else shape[2]
        self._wanted = chunk or None
        self.rungs = ladder(min(chunk or longest, shape[2]), shape[3], shape[4], tile, streamed)
        if not chunk or streamed:
            self._start_where_it_fits()

    @property
    def streams(self) -> bool:
        """Whether a stretch of any length is decoded in one go, each latent once, while its frames are taken."""
        return bool(self.rungs[0].piece)

    @property
    def chunk(self) -> int | None:
        """Latents per call of the VAE, as long as memory lasts; None: any number, for our own decoder."""
        return self._wanted if self.streams else self.rungs[0].chunk

    def __call__(self, latents: Tensor) -> Tensor:
        """Raises InterruptProcessingException, and RuntimeError when even the CPU has too little memory."""
        count = film_frames(latents.shape[2])
        films = [collect(self.stream(film), count) for film in latents.split(1)]  # the host's estimates are for one
        if self._beside and self._own is not None:
            self._own.unload()
        return films[0] if len(films) == 1 else torch.cat(films)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames of one stretch of one film in order, in pieces [1, F, H, W, 3]. Raises as a call does."""
        given = 0
        while True:
            first = max(0, math.ceil(given / FRAMES_PER_LATENT) - WARM_UP)
            known = given - FRAMES_PER_LATENT * first
            try:
                for frames in self._pieces(latents[:, :, first:]):
                    new = frames[:, max(known, 0) :]
                    known -= frames.shape[1]
                    given += new.shape[1]
                    if new.shape[1]:
                        yield new
                    del frames, new
                return
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            self._step_down()  # not in the except block: the exception holds on to what had been allocated

    def _step_down(self) -> None:
        failed = self.rungs.pop(0)
        if self._own is not None and not self.streams:
            self._own.unload()
        comfy.model_management.soft_empty_cache()
        if not self.rungs:
            raise RuntimeError(f"Memory ran out decoding {failed}; close other programs or make a smaller film.")
        logger.warning("FramePack: out of memory decoding %s; going on with %s.", failed, self.rungs[0])

    def _pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames of a stretch by the rung that it begins with."""
        rung = self.rungs[0]
        if rung.piece:
            self._load(rung)
            return self._own.frames(latents, rung.piece, rung.chunk)
        spans = chunk_spans(range(latents.shape[2]), rung.chunk)

        def decode(number: int) -> Tensor:
            span = spans[number]
            return self._call(latents[:, :, span.start : span.stop], rung)

        return join_spans(spans, decode, CHUNKS)

    def _call(self, latents: Tensor, rung: Rung) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        vae = self.vae
        if rung.tile:
            frames = vae.decode_tiled(latents, tile_x=rung.tile, tile_y=rung.tile, overlap=rung.tile // 4)
        else:
            device = self._load(rung)
            frames = vae.first_stage_model.decode(latents.to(device, vae.vae_dtype))  # [B, 3, F, H, W]
            frames = vae.process_output(frames.float()).movedim(1, -1)  # [B, F, H, W, 3]
        if frames.isnan().any():
            raise ValueError(
                f"The VAE made NaN of finite latents in {vae.vae_dtype}; start ComfyUI with --bf16-vae or --fp32-vae."
            )
        return frames.to(device="cpu", dtype=torch.float32)

    def _need(self, rung: Rung) -> float:
        """Bytes that a call is estimated to need."""
        height, width = (min(side, rung.tile or side) for side in self.shape[3:])
        if rung.piece:
            return SAFETY * self._own.need(height, width, rung.piece, rung.chunk)
        return SAFETY * self.vae.memory_used_decode((1, self.shape[1], rung.chunk, height, width), self.vae.vae_dtype)

    def _load(self, rung: Rung) -> torch.device:
        """The device that holds the VAE from now on, until the host loads it elsewhere; its memory is free for that."""
        host, vae = comfy.model_management, self.vae
        if rung.on_cpu:
            host.unload_all_models()  # so that the host knows that it is not on its device any more
            vae.first_stage_model.to("cpu")
            return torch.device("cpu")
        need = min(self._need(rung), 0.8 * host.get_total_memory(vae.device))  # or the host would offload the VAE too
        if rung.piece:
            host.free_memory(need + host.minimum_inference_memory(), vae.device)  # our copy takes the place of its own
        else:
            host.load_models_gpu([vae.patcher], memory_required=need, force_full_load=vae.disable_offload)
        return vae.device

    def _start_where_it_fits(self) -> None:
        """Drops rungs that are estimated not to fit; what is estimated to need the CPU is tried on the device."""
        device = self._load(self.rungs[-2 if self._beside else 0])
        free = comfy.model_management.get_free_memory(device) - comfy.model_management.minimum_inference_memory()
        on_device = [rung for rung in self.rungs if not rung.on_cpu]
        first = next((rung for rung in on_device if self._need(rung) <= free), on_device[-1])
        self.rungs = self.rungs[self.rungs.index(first) :]
        logger.info(
            "FramePack: decoding %s (%.1f GiB free, about %.1f needed)", first, free / 2**30, self._need(first) / 2**30
        )


def own_decoder(vae: Any) -> StreamedVae | None:
    """None where the host's decoder is as fast, or the VAE is not as the host loads it, which the log says."""
    if not streams_on(vae.device, vae.vae_dtype):
        return None
    try:
        return StreamedVae(vae)
    except UnknownVaeError as error:
        logger.info("FramePack: decoding through the host's decoder, because of this VAE: %s.", error)
        return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    test = getattr(comfy.model_management, "is_oom", None)  # not in ComfyUI 0.3.75
    return test(error) if test else isinstance(error, comfy.model_management.OOM_EXCEPTION)
