"""Files of the formats that travel as they are: what they say of themselves, and their pixels."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from salon.wire.images import jpeg, png, webp
from salon.wire.images.limits import ImageLimits, invalid

_CHECKS: dict[str, Callable[[memoryview, ImageLimits], "ImageFile"]] = {
    "PNG": png.check,
    "JPEG": jpeg.check,
    "WEBP": webp.check,
}


class ImageFile(Protocol):
    """A file whose structure holds; nothing of it is decoded yet."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    def decode(self) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, C], C = 3 (RGB) or 1 (gray).

        Raises:
            SampleError: INVALID_IMAGE or UNSUPPORTED_IMAGE.
        """


def format_of(data: memoryview) -> str:
    """PNG, JPEG or WEBP, by the first bytes; empty: none of them."""
    if data[: len(png.SIGNATURE)] == png.SIGNATURE:
        return "PNG"
    if data[: len(jpeg.SIGNATURE)] == jpeg.SIGNATURE:
        return "JPEG"
    return "WEBP" if webp.is_webp(data) else ""


def check(data: memoryview, declared: str, limits: ImageLimits) -> ImageFile:
    """Refuse a file by what it says of itself, before any pixel of it is decoded.

    Args:
        data: the file.
        declared: PNG, JPEG or WEBP.
        limits: the largest image, and the most work, that is accepted.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE.
    """
    actual = format_of(data)
    if not actual:
        raise invalid(
            f"declared {declared}, but the {len(data)} bytes are no readable PNG, JPEG or WebP file"
        )
    if actual != declared:
        raise invalid(f"declared {declared}, but the bytes are {actual}")
    return _CHECKS[declared](data, limits)
