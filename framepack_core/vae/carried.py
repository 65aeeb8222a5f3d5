"""Where the frames that layers carry from piece to piece wait: on the device, or in host memory."""

from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 2**25  # bytes that stay on the device
PREFETCHED = 1  # layers whose frames are on their way back before they are needed


class Away(NamedTuple):
    """Frames that are not on the device, or on their way back."""

    frames: Tensor
    room: int  # frames that the layer's buffer has, those included
    copied: torch.cuda.Event | None


class Carried:
    """Frames by the name of their layer: small ones on the device, large ones in pinned host memory.

    Of the large ones the device has those of a layer or two at a time. Copies run beside the computation: each piece
    meets the layers in the same order, so what comes next is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        streams = device.type == "cuda"
        self._outward = torch.cuda.Stream(device) if streams else None
        self._inward = torch.cuda.Stream(device) if streams else None
        self._frames: dict[str, tuple[Tensor, int]] = {}
        self._hosts: dict[str, Tensor] = {}  # each layer's pinned memory, in the layers' order
        self._away: dict[str, Away] = {}
        self._arriving: dict[str, Away] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._frames or name in self._away or name in self._arriving

    def take(self, name: str) -> Tensor | None:
        """What was put, with room behind it that may be used; None for the first frames of a film."""
        if name in self._frames:
            return self._frames.pop(name)[0]
        if name not in self._hosts:
            return None
        self._fetch(name)
        frames, _, copied = self._arriving.pop(name)
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        order = list(self._hosts)
        place = order.index(name)
        for following in (order[place + 1 :] + order[:place])[:PREFETCHED]:
            self._fetch(following)
        return frames

    def put(self, name: str, frames: Tensor, count: int) -> None:
        """The first `count` of frames are carried; the others are room that the layer may use within the piece."""
        self._frames[name] = frames, count

    def settle(self, *names: str) -> None:
        """Keeps no more than is carried, once a piece has gone through the layers."""
        for name in names:
            frames, count = self._frames.pop(name)
            kept = frames[:count]
            if kept.numel() * kept.element_size() < SMALL:
                self._frames[name] = kept.clone(), count
                continue
            if name not in self._hosts:
                self._hosts[name] = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=self._outward is not None)
            there = self._hosts[name]
            self._away[name] = Away(there, len(frames), self._copied(kept, there, self._outward, None))

    def _fetch(self, name: str) -> None:
        """Starts bringing frames back, into a buffer as long as the one that they came from."""
        if name in self._away:
            frames, room, gone = self._away.pop(name)
            back = torch.empty((room, *frames.shape[1:]), dtype=frames.dtype, device=self._device)
            copied = self._copied(frames, back[: len(frames)], self._inward, gone)
            self._arriving[name] = Away(back, room, copied)

    def _copied(
        self, source: Tensor, target: Tensor, stream: torch.cuda.Stream | None, after: torch.cuda.Event | None
    ) -> torch.cuda.Event | None:
        """The event after the copy, which waits for what the device has been asked to do so far, and for `after`."""
        if stream is None:
            target.copy_(source)
            return None
        stream.wait_stream(torch.cuda.current_stream(self._device))
        if after is not None:
            stream.wait_event(after)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        if source.is_cuda:
            source.record_stream(stream)  # its memory is not given away before the copy is done
        copied = torch.cuda.Event()
        copied.record(stream)
        return copied
