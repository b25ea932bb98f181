"""What the hostile callers of the benchmark send is what it says."""

import pytest

from benchmarks.hostile import FILES, LARGE
from salon.errors import SampleError
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.images import ImageLimits, check

REFUSED = {
    "wrong_length": "ERROR_CODE_INVALID_IMAGE",
    "png_empty_chunks": "ERROR_CODE_IMAGE_TOO_LARGE",
    "png_data_chunks": "ERROR_CODE_IMAGE_TOO_LARGE",
    "png_compressed_text": "ERROR_CODE_IMAGE_TOO_LARGE",
    "jpeg_markers": "ERROR_CODE_IMAGE_TOO_LARGE",
    "jpeg_scans": "ERROR_CODE_IMAGE_TOO_LARGE",
    "jpeg_cmyk": "ERROR_CODE_UNSUPPORTED_IMAGE",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_refused_from_its_header_or_is_large(kind):
    form, data = FILES[kind]()
    image = pb.Image(format=form, height=LARGE, width=LARGE)
    if kind in REFUSED:
        with pytest.raises(SampleError) as caught:
            check(image, data, ImageLimits())
        assert caught.value.code_name == REFUSED[kind]
    else:
        assert len(data) < 100_000
        assert check(image, data, ImageLimits()).new_pixels == LARGE * LARGE
