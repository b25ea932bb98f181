"""Whatever bytes a caller sends as an image: pixels within the limits, or a SampleError."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.images import ImageLimits, decode, encode
from tests.salon.files import encoded, noise

LIMITS = ImageLimits(max_side=64, max_pixels=2000)
CODES = {
    pb.ERROR_CODE_INVALID_IMAGE,
    pb.ERROR_CODE_IMAGE_TOO_LARGE,
    pb.ERROR_CODE_UNSUPPORTED_IMAGE,
}
PHOTO = Image.fromarray(noise(40, 40))
FILES = [
    encoded(PHOTO),
    encoded(PHOTO.convert("P")),
    encoded(PHOTO.convert("1")),
    encoded(PHOTO, "JPEG"),
    encoded(PHOTO.convert("L"), "JPEG", progressive=True),
    encoded(PHOTO, "WEBP"),
    encoded(PHOTO, "WEBP", lossless=True),
]
HEADERS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\x00\x00\x00WEBP"]
fuzz = settings(deadline=None, max_examples=300)
formats = st.integers(0, 6)


def outcome(image, data):
    """The error's code, or None for pixels."""
    try:
        pixels = decode(image, data, LIMITS)
    except SampleError as error:
        assert error.code in CODES
        assert 0 < len(str(error)) < 500
        return error.code
    height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8
    assert max(height, width) <= LIMITS.max_side
    assert 0 < height * width <= LIMITS.max_pixels
    assert channels in (1, 3)
    return None


@fuzz
@given(formats, st.sampled_from(HEADERS), st.binary(max_size=200))
def test_arbitrary_bytes(kind, header, data):
    outcome(pb.Image(format=kind), memoryview(header + data))


@fuzz
@given(st.sampled_from(FILES), st.data())
def test_damaged_files(file, data):
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, 2 * len(damaged)))
    [sent] = encode([file])
    outcome(sent.message, memoryview(bytes(damaged[:cut])))


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_to_half_is_invalid_and_whole_it_is_not(file):
    [sent] = encode([file])
    assert outcome(sent.message, file) is None
    assert outcome(sent.message, file[: len(file) // 2]) == pb.ERROR_CODE_INVALID_IMAGE


sides = st.integers(0, 70) | st.integers(0, 2**32 - 1)


@fuzz
@given(st.sampled_from([(pb.IMAGE_FORMAT_RGB8, 3), (pb.IMAGE_FORMAT_GRAY8, 1)]), sides, sides)
def test_raw_pixels_of_any_shape(kind, height, width):
    image = pb.Image(format=kind[0], height=height, width=width)
    size = height * width * kind[1]
    large = max(height, width) > LIMITS.max_side or height * width > LIMITS.max_pixels
    if height * width == 0:
        assert outcome(image, b"") == pb.ERROR_CODE_INVALID_IMAGE
    elif large:
        assert outcome(image, b"") == pb.ERROR_CODE_IMAGE_TOO_LARGE
    else:
        assert outcome(image, bytes(size)) is None
        for wrong in (0, size - 1, size + 1, 2 * size):
            assert outcome(image, bytes(wrong)) == pb.ERROR_CODE_INVALID_IMAGE
