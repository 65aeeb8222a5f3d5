"""Host memory while a long film goes into a video file: python3 scripts/measure_video_memory.py --host ComfyUI

Latents are given, and the decoder is upsampling (a VAE on a CPU would take hours), so this measures what the pack
holds: windows, cross-fades and the encoder. Prints JSON: the peak of resident memory above the start, and what PyAV
reads from the file. --image decodes to IMAGE for comparison.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from host_attach import attach_host
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI folder")
    parser.add_argument("--sections", type=int, default=50, help="50 are 60 seconds")
    parser.add_argument("--size", type=int, default=640, help="pixels a side")
    parser.add_argument("--image", action="store_true", help="decode to IMAGE, which grows with the film")
    arguments = parser.parse_args()
    if not arguments.host:
        parser.error("name a ComfyUI folder with --host or COMFYUI_PATH")
    attach_host(arguments.host, cpu=True)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.sections, arguments.size, arguments.image, Path(folder))))


def measure(sections: int, size: int, image: bool, folder: Path) -> dict[str, Any]:
    """One film of so many sections of changing grey."""
    import av
    from framepack_pack.framepack_core.comfy_host.video_file import open_video
    from framepack_pack.framepack_core.decoding import collect, decode_film, plan_sections
    from framepack_pack.framepack_core.history import film_frames, film_latents, new_history
    from framepack_pack.framepack_core.section_plan import plan_backward

    cells = size // 8
    history = new_history(plan_backward(sections, 9), 0, size, size, torch.zeros(1, 16, 1, cells, cells))
    made = tuple(torch.rand(1, 16, 9, cells, cells) for _ in range(sections))
    history = history._replace(sections=made)
    latents, plan = film_latents(history), plan_sections(history)
    frames = film_frames(latents.shape[2])
    path = folder / "film.mp4"
    with Peak() as peak:
        begun = time.perf_counter()
        pieces = decode_film(latents, plan, upsample)
        if image:
            collect(pieces, frames)
        else:
            with open_video(path, frames, size, size, metadata={"prompt": "{}"}) as writer:
                for piece in pieces:
                    writer.write(piece[0])
                    del piece
        seconds = time.perf_counter() - begun
    report = {
        "frames": frames,
        "grown_mib": round(peak.grown / 2**20),
        "image_mib": round(frames * size * size * 3 * 4 / 2**20),
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
        "seconds": round(seconds, 1),
    }
    if not image:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            report |= {
                "duration_s": container.duration / av.time_base,
                "fps": float(stream.average_rate),
                "frames_in_file": stream.frames,
                "metadata": "prompt" in container.metadata,
                "file_mib": round(path.stat().st_size / 2**20),
            }
    return report


def upsample(latents: Tensor) -> Tensor:
    """[1, 16, T, h, w] -> [1, 4 T - 3, 8 h, 8 w, 3]: grey cells."""
    frames = latents[0, :1].repeat_interleave(4, dim=1)[:, 3:]  # [1, F, h, w]
    frames = torch.nn.functional.interpolate(frames, scale_factor=8.0, mode="bilinear")  # [1, F, H, W]
    return frames.unsqueeze(-1).repeat(1, 1, 1, 1, 3)


class Peak:
    """The most resident memory, in bytes, above that at the start; looked at every 5 ms."""

    def __enter__(self) -> "Peak":
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._process.memory_info().rss
        self.grown = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.grown = max(self.grown, self._process.memory_info().rss - self._start)


if __name__ == "__main__":
    main()
