"""A batch of uint8 images and its wire messages; every limit on decoding is here.

What a caller holds becomes wire messages in `encode`. A service reads one in two steps: `check`
looks at what it says of itself, so that room can be made for its pixels, and `decode` unpacks it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2
from salon.wire.images import files
from salon.wire.images.limits import ImageLimits, check_size, invalid
from salon.wire.images.opened import pixels_of

__all__ = [
    "Buffer",
    "CheckedImage",
    "ImageBatch",
    "ImageLimits",
    "Pixels",
    "WireImage",
    "check",
    "decode",
    "encode",
]

Pixels = NDArray[np.uint8]
"""One image, uint8 [H, W, C], C = 3 (RGB) or 1 (gray)."""

ImageBatch = Pixels | Sequence[NDArray[Any] | Image.Image | bytes]
"""uint8 [N, H, W, C], or a sequence of uint8 [H, W, C] or [H, W] arrays, Pillow images, and the
bytes of PNG, JPEG or WebP files."""

Buffer = bytes | memoryview
"""Bytes of an image; a memoryview is one of bytes, contiguous."""

_RAW_CHANNELS = {reward_pb2.IMAGE_FORMAT_RGB8: 3, reward_pb2.IMAGE_FORMAT_GRAY8: 1}
_ENCODED = {
    reward_pb2.IMAGE_FORMAT_PNG: "PNG",
    reward_pb2.IMAGE_FORMAT_JPEG: "JPEG",
    reward_pb2.IMAGE_FORMAT_WEBP: "WEBP",
}
_FORMATS = {name: number for number, name in _ENCODED.items()}


@dataclass(frozen=True)
class WireImage:
    """The wire message of an image without the image's bytes, and these bytes."""

    message: reward_pb2.Image
    data: Buffer


@dataclass(frozen=True)
class CheckedImage:
    """One wire message that is what it says, as far as can be told without decoding it."""

    new_pixels: int
    """Height times width of what decoding makes; 0 for raw pixels, which stay where they are."""
    decode: Callable[[], Pixels]
    """As `salon.wire.images.decode`."""


def encode(images: ImageBatch, name: str = "image") -> Iterator[WireImage]:
    """The wire form of each image; the bytes of a contiguous array are not copied.

    Arrays and Pillow images travel as raw pixels; bytes travel as they are. No pixel is altered: a
    Pillow palette, bilevel or fully opaque RGBA image becomes RGB or gray of the same values.

    Args:
        images: the batch.
        name: what errors call one of them.

    Raises:
        InvalidRequest: something is not an image of those kinds; the message names which one and
            the way out.
    """
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise InvalidRequest(
            f"images must be [N, H, W, C], got shape {list(images.shape)}; "
            "for one image pass images[None]"
        )
    if isinstance(images, (str, bytes, Image.Image)):
        raise InvalidRequest(f"images must be a batch; for one {type(images).__name__} pass [it]")
    for index, image in enumerate(images):
        yield _encode_one(image, f"{name} {index}")


def check(image: reward_pb2.Image, data: Buffer, limits: ImageLimits) -> CheckedImage:
    """What one wire message says of itself; nothing is decoded, and little work done.

    Args:
        image: format and shape.
        data: what stands for the message's `data`: raw pixels, or a file.
        limits: the largest image, and the most work, that is accepted.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE, with what is wrong.
    """
    if image.format in _RAW_CHANNELS:
        pixels = _raw(image, data, limits)
        return CheckedImage(0, lambda: pixels)
    if image.format in _ENCODED:
        file = files.check(memoryview(data), _ENCODED[image.format], limits)
        return CheckedImage(file.height * file.width, file.decode)
    raise invalid(
        f"image format {image.format} is none of "
        f"{', '.join(reward_pb2.ImageFormat.keys()[1:])}; set Image.format"
    )


def decode(image: reward_pb2.Image, data: Buffer, limits: ImageLimits) -> Pixels:
    """The pixels of one wire message, uint8 [H, W, C], C = 3 (RGB) or 1 (gray).

    Encoded files are decoded as stored: no EXIF rotation, no colour management.

    Args:
        image: format and shape.
        data: what stands for the message's `data`: raw pixels, of which the result is a view, or a
            file.
        limits: the largest image, and the most work, that is accepted.

    Returns:
        The pixels; read-only if `data` is.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE, with what is wrong.
    """
    return check(image, data, limits).decode()


def _encode_one(image: Any, name: str) -> WireImage:
    if isinstance(image, bytes):
        return WireImage(reward_pb2.Image(format=_file_format(image, name)), image)
    if isinstance(image, Image.Image):
        try:
            image = pixels_of(image)
        # A Pillow image decodes its file only now, and that can fail.
        except (SampleError, OSError, SyntaxError, ValueError) as error:
            raise InvalidRequest(f"{name}: {error}") from None
    if not isinstance(image, np.ndarray):
        raise InvalidRequest(
            f"{name} is a {type(image).__name__}; pass a uint8 array, a Pillow image, "
            "or the bytes of a PNG, JPEG or WebP file"
        )
    if image.dtype != np.uint8:
        raise InvalidRequest(
            f"{name} is {image.dtype}, not uint8; for floats x in [0, 1] pass "
            "(x*255).round().astype(uint8)"
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InvalidRequest(
            f"{name} has shape {list(image.shape)}; needed is [H, W, 3] (RGB) or [H, W, 1] (gray): "
            "move channels last, and drop alpha or lay the image on a background"
        )
    if image.size == 0:
        raise InvalidRequest(f"{name} has shape {list(image.shape)}: it has no pixels")
    height, width, channels = image.shape
    kind = reward_pb2.IMAGE_FORMAT_RGB8 if channels == 3 else reward_pb2.IMAGE_FORMAT_GRAY8
    message = reward_pb2.Image(format=kind, height=height, width=width)
    return WireImage(message, np.ascontiguousarray(image).data.cast("B"))


def _file_format(data: bytes, name: str) -> reward_pb2.ImageFormat.ValueType:
    if found := files.format_of(memoryview(data)):
        return _FORMATS[found]
    raise InvalidRequest(
        f"{name}: {len(data)} bytes that begin with {data[:8]!r} are no PNG, JPEG or WebP file; "
        "decode other formats first, for instance with PIL.Image.open"
    )


def _raw(image: reward_pb2.Image, data: Buffer, limits: ImageLimits) -> Pixels:
    height, width, channels = image.height, image.width, _RAW_CHANNELS[image.format]
    check_size(height, width, limits)
    expected = height * width * channels
    if len(data) != expected:
        raise invalid(
            f"{reward_pb2.ImageFormat.Name(image.format)} of {height} x {width} is {expected} "
            f"bytes, got {len(data)}{_channel_hint(len(data), height * width)}"
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def _channel_hint(size: int, pixels: int) -> str:
    channels, rest = divmod(size, pixels)
    if rest or channels not in (1, 2, 3, 4):
        return ": send height * width * channels bytes without padding"
    return f": that is {channels} channel(s); send RGB8 with 3 or GRAY8 with 1"
