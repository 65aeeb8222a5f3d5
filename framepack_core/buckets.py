"""Film sizes that the checkpoints were trained with.

Source: FP bucket_tools.py. (height, width) in pixels around 640 x 640.
"""

from .constants import RESOLUTION, SIZE_MULTIPLE

BUCKETS = (
    (416, 960),
    (448, 864),
    (480, 832),
    (512, 768),
    (544, 704),
    (576, 672),
    (608, 640),
    (640, 608),
    (672, 576),
    (704, 544),
    (768, 512),
    (832, 480),
    (864, 448),
    (960, 416),
)


def nearest_bucket(height: int, width: int, resolution: int = RESOLUTION) -> tuple[int, int]:
    """(height, width) of the bucket closest in shape to an image; of two equal ones the later.

    A resolution other than 640 scales the bucket, each side rounded to a multiple of 16.
    Raises ValueError for an empty image or a resolution below 32.
    """
    if height < 1 or width < 1:
        raise ValueError(f"The image is {width}x{height} pixels; there is nothing to fit.")
    if resolution < 2 * SIZE_MULTIPLE:
        raise ValueError(f"resolution is {resolution}; it must be at least {2 * SIZE_MULTIPLE} pixels (640 is usual).")
    best = min(reversed(BUCKETS), key=lambda bucket: abs(height * bucket[1] - width * bucket[0]))
    if resolution == RESOLUTION:
        return best
    scaled = [max(round(side * resolution / RESOLUTION / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for side in best]
    return scaled[0], scaled[1]
