import numpy as np
import pytest

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.models.pixels import matching_reference, rgb


def blank(*shape):
    return np.zeros(shape, np.uint8)


def test_gray_is_repeated_and_rgb_is_left_alone():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert rgb(gray).shape == (2, 3, 3)
    for channel in range(3):
        assert (rgb(gray)[:, :, channel] == gray[:, :, 0]).all()
    colour = blank(2, 3, 3)
    assert rgb(colour) is colour


def test_a_reference_of_the_same_shape_is_returned():
    reference = blank(8, 9, 1)
    assert matching_reference(Sample(blank(8, 9, 1), "", {}, reference), 8) is reference


@pytest.mark.parametrize(
    ("image", "reference", "code", "message"),
    [
        (blank(8, 9, 3), None, "MISSING_INPUT", "no reference"),
        (blank(8, 9, 3), blank(9, 8, 3), "INVALID_SAMPLE", "8x9x3 and the reference 9x8x3"),
        (blank(8, 9, 3), blank(8, 9, 1), "INVALID_SAMPLE", "8x9x3 and the reference 8x9x1"),
        (blank(7, 9, 3), blank(7, 9, 3), "INVALID_SAMPLE", "7x9x3: each side must be at least 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(image, reference, code, message):
    with pytest.raises(SampleError, match=message) as caught:
        matching_reference(Sample(image, "", {}, reference), minimum_side=8)
    assert caught.value.code == getattr(reward_pb2, f"ERROR_CODE_{code}")
