"""A video file that grows at either end and is a whole film at every moment.

Pieces are encoded once each, as films of their own, and stay in memory encoded (far smaller than their latents). When
one comes, the packets of all are copied into a new file, without encoding, and that takes the old one's place at once.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path

import av
from torch import Tensor

from .video_file import VideoFormat, VideoWriter

logger = logging.getLogger(__name__)

REORDERED = 2  # frames that x264 lets a packet wait for, for its B-frames; a piece of one frame says 0


class GrowingVideo:
    """One film's file. Never overwrites a file that is not its own."""

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        video_format: VideoFormat = VideoFormat(),  # noqa: B008 - a tuple
    ) -> None:
        """path: where the film shall be; if something is there, the next free name with a number is taken.

        The codec is h264: of the others, not every encoder starts each piece in the same way.
        """
        self.path = _reserve(path)
        self._metadata, self._format = dict(metadata or {}), video_format
        self._pieces: list[bytes] = []  # in film order, MP4

    def grow(self, at_end: bool, joined: Tensor | None, added: Tensor) -> None:
        """Frames [F, H, W, 3]: `joined` replaces the last piece of the end that grows, `added` comes after it.

        Raises OSError when the folder cannot be written; what was there before then still plays.
        """
        if joined is not None:
            self._pieces[-1 if at_end else 0] = self._encode(joined)
        self._pieces.insert(len(self._pieces) if at_end else 0, self._encode(added))
        self._save()

    def close(self) -> None:
        """Takes the reserved name back when there is no film."""
        if not self._pieces:
            self.path.unlink(missing_ok=True)

    def _encode(self, frames: Tensor) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            writer = VideoWriter(container, frames.shape[1], frames.shape[2], self._format, None, 0.0)
            writer.write(frames)
            writer.finish()
        return file.getvalue()

    def _save(self) -> None:
        unfinished = self.path.with_suffix(".part")
        try:
            self._copy_packets(unfinished)
            try:
                unfinished.replace(self.path)
            except PermissionError:  # Windows, while a player has it open
                held, self.path = self.path, _reserve(self.path)
                unfinished.replace(self.path)
                logger.info("FramePack: %s is open elsewhere; the film goes on in %s", held, self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _copy_packets(self, path: Path) -> None:
        with av.open(str(path), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as film:
            film.metadata.update(self._metadata)
            stream, copied = None, 0
            for piece in self._pieces:
                with av.open(io.BytesIO(piece)) as source:
                    given, first = source.streams.video[0], copied
                    stream = stream or film.add_stream_from_template(given)
                    for packet in source.demux(given):
                        if packet.pts is None:  # the last one is empty
                            continue
                        packet.pts += first * packet.duration  # not the piece's duration, which is rounded to ms
                        packet.dts = (copied - REORDERED) * packet.duration
                        packet.stream = stream
                        film.mux(packet)
                        copied += 1


def _reserve(path: Path) -> Path:
    """An empty file of this name, or with the next number that is free: film_2.mp4. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, free = 1, path
    while True:
        try:
            free.open("xb").close()
            return free
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}_{number}")
