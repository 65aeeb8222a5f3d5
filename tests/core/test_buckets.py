"""Golden values from the original's code."""

import pytest
from framepack_pack.framepack_core.buckets import BUCKETS, nearest_bucket


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (512, 512, (640, 608)),
        (1024, 1024, (640, 608)),
        (1080, 1920, (480, 832)),
        (768, 1024, (544, 704)),
        (1920, 1080, (832, 480)),
    ],
)
def test_known_images(height, width, bucket):
    assert nearest_bucket(height, width) == bucket


def test_buckets_are_their_own():
    assert [nearest_bucket(*bucket) for bucket in BUCKETS] == list(BUCKETS)


def test_other_resolutions_scale_to_multiples_of_16():
    assert nearest_bucket(1080, 1920, 320) == (240, 416)
    assert nearest_bucket(512, 512, 64) == (64, 64)


@pytest.mark.parametrize(("size", "message"), [((0, 5, 640), "nothing to fit"), ((5, 5, 16), "at least 32 pixels")])
def test_what_cannot_be_fitted_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        nearest_bucket(*size)
