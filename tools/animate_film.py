"""Turns a film into the moving picture of the README, twice its size: `tools/animate_film.py FILM.mp4 docs/demo.webp`.

Needs PyAV and Pillow, which ComfyUI brings.
"""

import argparse
from pathlib import Path

import av
from PIL import Image

MILLISECONDS = 33  # a frame, at 30 per second
QUALITY = 80


def main() -> None:
    """Reads the film, writes the picture and says how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("film", type=Path)
    parser.add_argument("output", type=Path, help="WebP file")
    options = parser.parse_args()
    with av.open(str(options.film)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    larger = [picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS) for picture in pictures]
    larger[0].save(
        options.output, save_all=True, append_images=larger[1:], duration=MILLISECONDS, loop=0, quality=QUALITY
    )
    print(f"{options.output}: {len(larger)} frames, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
