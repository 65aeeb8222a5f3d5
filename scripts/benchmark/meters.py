"""Clocks and memory meters that work with and without a card."""

import ctypes
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


class Stopwatch:
    """Times calls on the device without waiting in between; CUDA events on a card, the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_card = device.type == "cuda"
        self.marks: list[tuple[Any, Any]] = []

    def time(self, call: Callable[[], Tensor]) -> Tensor:
        begun = self._mark()
        out = call()
        self.marks.append((begun, self._mark()))
        return out

    def milliseconds(self) -> list[float]:
        if not self.on_card:
            return [1000 * (end - begin) for begin, end in self.marks]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in self.marks]

    def _mark(self) -> Any:
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def median_ms(function: Callable[[], Any], repeats: int) -> float:
    """Of so many calls, on the card where there is one, after a call that compiles."""
    watch = Stopwatch(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    function()
    for _ in range(repeats):
        watch.time(function)
    return statistics.median(watch.milliseconds())


def uncovered(spans: list[tuple[float, float]]) -> float:
    """How much of the time from the first begin to the last end lies in none of the spans (begin, end)."""
    spans = sorted(spans)
    idle, busy_until = 0.0, spans[0][0] if spans else 0.0
    for begin, end in spans:
        idle += max(0.0, begin - busy_until)
        busy_until = max(busy_until, end)
    return idle


class CardWatch:
    """Largest memory used on the card, by whatever allocator (the host's dynamic VRAM is not torch's)."""

    def __init__(self, device: torch.device, taken: int = 0) -> None:
        self.on_card, self.taken, self.largest, self._stop = device.type == "cuda", taken, 0, threading.Event()

    def __enter__(self) -> "CardWatch":
        if self.on_card:
            torch.cuda.reset_peak_memory_stats()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.on_card:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.largest = max(self.largest, used_on_card() - self.taken)

    def figures(self) -> dict[str, float]:
        if not self.on_card:
            return {}
        return {"torch_peak_gib": torch.cuda.max_memory_allocated() / GIB, "card_peak_gib": self.largest / GIB}


def used_on_card() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def host_memory() -> dict[str, float]:
    """Peak resident memory with pages of mapped files, and what is now resident of our own."""
    figures = {"rss_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        figures["rss_anonymous_gib"] = int(lines.get("RssAnon", "0 kB").split()[0]) / 2**20
    return figures


@contextmanager
def all_but(gib: float | None) -> Iterator[int]:
    """Occupy the card so that `gib` are left, this process's context included; gives the bytes that are taken.

    By the driver, outside torch, so that the host's memory managers see a smaller card. Nothing is taken without a
    number and without a card.
    """
    if not gib or not torch.cuda.is_available():
        yield 0
        return
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    _, total = torch.cuda.mem_get_info()
    taken = total - int(gib * GIB)
    driver, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
    result = driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(taken))
    if result != 0:
        raise RuntimeError(f"{taken / GIB:.1f} GiB could not be taken (CUDA error {result}); is the card in use?")
    try:
        yield taken
    finally:
        driver.cuMemFree_v2(pointer)
