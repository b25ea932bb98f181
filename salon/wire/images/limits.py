"""How large an image may be, and how much work its file; and the words in which one is refused."""

import sys
from dataclasses import dataclass

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded; a larger one is refused from its header."""

    max_side: int = 8192
    """Greatest height and width, in pixels."""
    max_pixels: int = 4096 * 4096
    """Greatest height times width: 50 MB of RGB."""
    max_segments: int = 1024
    """Most chunks of a WebP, segments of a JPEG, and chunks of a PNG beside those of its pixels:
    libpng's own bound is 1000."""
    max_data_chunks: int = 16 * 1024
    """Most chunks of a PNG's pixels. One of 67 MB in libpng's pieces of 8 KiB has half as many, and
    so has the highest one with a chunk for each row."""
    max_scans: int = 200
    """Most scans of a JPEG. Encoders write about 10; one scan for each coefficient is 192."""
    max_scan_pixels: int = 64 * 4096 * 4096
    """Greatest height times width times scans of a JPEG: each scan goes through the whole image,
    even one of a few bytes."""


UNLIMITED = ImageLimits(*[sys.maxsize] * 6)
"""For files that their owner opens."""


def check_size(height: int, width: int, limits: ImageLimits) -> None:
    """Refuse what has no pixels or too many.

    Raises:
        SampleError: INVALID_IMAGE or IMAGE_TOO_LARGE.
    """
    if height < 1 or width < 1:
        raise invalid(f"height {height} and width {width}: the image has no pixels")
    if max(height, width) > limits.max_side or height * width > limits.max_pixels:
        raise too_large(
            f"{height} x {width} pixels; at most {limits.max_side} a side and {limits.max_pixels} "
            "in all are accepted: resize it, or raise the service's limits"
        )


def check_segments(found: int, what: str, limits: ImageLimits) -> None:
    """Refuse a file in too many pieces, `what` and how many were `found` so far.

    Raises:
        SampleError: IMAGE_TOO_LARGE.
    """
    if found > limits.max_segments:
        raise too_large(
            f"the file has more than {limits.max_segments} {what}: write it anew without metadata, "
            "or raise the service's --max-image-segments"
        )


def invalid(message: str) -> SampleError:
    """INVALID_IMAGE."""
    return SampleError(reward_pb2.ERROR_CODE_INVALID_IMAGE, message)


def unsupported(message: str) -> SampleError:
    """UNSUPPORTED_IMAGE."""
    return SampleError(reward_pb2.ERROR_CODE_UNSUPPORTED_IMAGE, message)


def too_large(message: str) -> SampleError:
    """IMAGE_TOO_LARGE."""
    return SampleError(reward_pb2.ERROR_CODE_IMAGE_TOO_LARGE, message)
