"""What cards do, as data: memory, and operations and bytes per second that a forward of this kind reached or should."""

from typing import NamedTuple

GIB = 2**30


class Card(NamedTuple):
    """vram: bytes. tflops: reached by bf16 forwards, not the data sheet's. link: bytes per second from RAM."""

    vram: int
    tflops: float
    link: float


LINK = 25e9  # PCIe 4.0 x16 as it is in practice; 5.0 gives twice that

CARDS = {
    # 535 TFLOP in 0.82 s, 3.45 s, 7.8 s and 21 s: estimates from rooflines, not measured here, but for the H100
    "H200": Card(141 * GIB, 650, 2 * LINK),
    "H100": Card(80 * GIB, 600, 2 * LINK),  # SGLang PR 22814: 667 on HunyuanVideo, compiled
    "RTX 5090": Card(32 * GIB, 210, 2 * LINK),
    "RTX 4090": Card(24 * GIB, 155, LINK),
    "RTX 3090": Card(24 * GIB, 68, LINK),
    "RTX 3060": Card(12 * GIB, 25, LINK),
}


def find_card(device_name: str) -> Card | None:
    """The card that a driver's name means ("NVIDIA GeForce RTX 4090"), if the table has it; laptops are others."""
    if "laptop" in device_name.lower():
        return None
    words = set(device_name.lower().split())
    for name, card in CARDS.items():
        if set(name.lower().split()) <= words and not words & {"ti", "super", "d"}:
            return card
    return None
