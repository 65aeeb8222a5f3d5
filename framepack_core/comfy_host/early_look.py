"""Finished sections as pictures and as a growing video file, while later sections are sampled.

Decoding happens between two sections, on the host's thread: a card has as much to do if both are at once, and the host
may move weights, and hand a cancel to whoever asks first, only where one thread asks. Joining, encoding and writing are
the CPU's, and happen behind the sampling of the next section.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ..growing_film import GrowingFilm, NewSection, SectionDecoder, glimpse, pictures
from ..history import History
from .frames import check_vae
from .growing_video import GrowingVideo
from .vae_decoder import VaeDecoder

logger = logging.getLogger(__name__)

OFF, PREVIEW, FILE = "off", "preview", "file"
LOOKS = (OFF, PREVIEW, FILE)
CHUNK = 5  # latents, as the original's VAE; and of a window of 18, two of its six chunks are known already
STRIP = 1024  # pixels, the longer side of the pictures together
FAILURES = (RuntimeError, ValueError, OSError, av.FFmpegError)  # not the host's interrupt


class EarlyLook:
    """Of one run of a sampler. Whatever goes wrong in it is said once, and sampling goes on without it."""

    def __init__(self, vae: Any, videos: Sequence[GrowingVideo] = ()) -> None:
        """videos: one for each film of the batch, or none for pictures only. Raises ValueError for another VAE."""
        check_vae(vae)
        self.strip: Image.Image | None = None  # pictures of the newest section
        self.seconds = 0.0  # that sampling stood still for it
        self.ending = 0.0  # seconds that the run waited for its file after the last section
        self._vae, self._videos = vae, videos
        self._decoder: VaeDecoder | None = None
        self._sections, self._film = SectionDecoder(self._decode, CHUNK), GrowingFilm()
        self._newest: History | None = None
        self._job: Future | None = None
        self.over = False  # after a failure

    @contextmanager
    def during(self, history: History, sections: int) -> Iterator[Callable[[History], None]]:
        """What to call with the history after each of the sections; at the end the files are whole, however it ends."""
        bar = comfy.utils.ProgressBar(sections)

        def on_section(newest: History) -> None:
            self._newest = newest
            self._look()
            if not self.over:
                bar.update_absolute(newest.draws - history.draws, sections, ("JPEG", self.strip, None))

        with ThreadPoolExecutor(1, "framepack_early_look") as self._writer:
            try:
                yield on_section
            finally:
                begun = time.perf_counter()
                self._finish()
                self.ending = time.perf_counter() - begun
        logger.info("FramePack: the early look took %.1f s of the sampling's time.", self.seconds)

    @property
    def paths(self) -> list[Path]:
        """Of the films' files."""
        return [video.path for video in self._videos]

    def above(self, preview: tuple[str, Image.Image, int | None]) -> tuple[str, Image.Image, int | None]:
        """The host's preview of a step with the newest section's pictures above it."""
        if self.strip is None:
            return preview
        kind, image, _ = preview
        width, height = self.strip.size
        below = image.resize((width, max(round(image.height * width / image.width), 1)))
        both = Image.new("RGB", (width, height + below.height))
        both.paste(self.strip)
        both.paste(below, (0, height))
        return kind, both, None

    def _look(self) -> None:
        if self.over or self._newest is None:
            return
        begun = time.perf_counter()
        try:
            made = self._newest
            self.strip = picture_strip(self._grow(made) if self._videos else glimpse(made, self._decode))
        except FAILURES as error:
            self._end(error)
        finally:
            self.seconds += time.perf_counter() - begun

    def _grow(self, history: History) -> Tensor:
        """Hands what is new to the writer; pictures [3, H, W, 3] of it."""
        shown = torch.zeros(0)
        for section in self._sections.new_sections(history):
            self._wait()  # or frames would heap up when the writer is slower
            self._job = self._writer.submit(self._write, section)
            shown = pictures(section)
        return shown

    def _write(self, section: NewSection) -> None:
        growth = self._film.join(section)
        for film, video in enumerate(self._videos):
            video.grow(growth.at_end, None if growth.joined is None else growth.joined[film], growth.open[film])

    def _wait(self) -> None:
        """Raises what went wrong in the writer."""
        job, self._job = self._job, None
        if job:
            job.result()

    def _finish(self) -> None:
        try:
            if self._newest and self._videos and self._sections.sections < self._newest.draws:
                self._look()  # cancelled while it was decoded
            self._wait()
        except FAILURES as error:
            self._end(error)
        finally:
            for video in self._videos:
                video.close()

    def _decode(self, latents: Tensor) -> Tensor:
        if self._decoder is None:
            _, channels, _, height, width = latents.shape
            self._decoder = VaeDecoder(self._vae, (1, channels, CHUNK, height, width), beside=True)
            where = " and ".join(map(str, self.paths))
            logger.info("FramePack: early look between sections%s", f"; the film so far is in {where}" * bool(where))
        return self._decoder(latents)

    def _end(self, error: Exception) -> None:
        if not self.over:
            logger.warning("FramePack: the early look has ended (%s); sampling goes on without it.", error)
        self.over = True


def check_look(look: str, vae: Any) -> None:
    """Raises ValueError for an early look without a VAE, or with another than HunyuanVideo's."""
    if look == OFF:
        return
    if vae is None:
        raise ValueError(f"early_look is '{look}', which needs a VAE; connect one, or set early_look to {OFF}.")
    check_vae(vae)


def picture_strip(pictures: Tensor) -> Image.Image:
    """Pictures [N, H, W, 3], values 0 to 1, side by side."""
    row = pictures.movedim(0, 1).flatten(1, 2)  # [H, N * W, 3]
    image = Image.fromarray((row * 255).clamp(0, 255).to(torch.uint8).cpu().numpy())
    image.thumbnail((STRIP, STRIP))
    return image
