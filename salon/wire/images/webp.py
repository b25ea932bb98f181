"""WebP files (RFC 9649; sections in brackets)."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salon.wire.images.exact import losslessly
from salon.wire.images.limits import ImageLimits, check_segments, check_size, invalid, unsupported

_HEADER_BYTES = 12


@dataclass(frozen=True)
class WebpFile:
    """A WebP whose structure holds; nothing of it is decoded yet."""

    height: int
    width: int
    _data: memoryview

    def decode(self) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, 3].

        Raises:
            SampleError: INVALID_IMAGE; UNSUPPORTED_IMAGE where a pixel is transparent, or it has
                several frames.
        """
        try:
            image = Image.open(io.BytesIO(self._data), formats=["WEBP"])
            image.load()
        # Its decoder raises whatever it stumbles over.
        except Exception as error:  # noqa: BLE001
            raise invalid(f"the WebP file is corrupt or truncated: {error}") from None
        with image:
            # A damaged length may hide a frame from the walk, and not from the decoder.
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise _animation(frames)
            return np.asarray(losslessly(image))


def is_webp(data: memoryview) -> bool:
    """Whether a file begins as a WebP does [2.4]."""
    return bytes(data[:4]) == b"RIFF" and bytes(data[8:_HEADER_BYTES]) == b"WEBP"


def check(data: memoryview, limits: ImageLimits) -> WebpFile:
    """Walk the chunks of a file that begins as a WebP does; what lies behind them is not looked at.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE.
    """
    (size,) = struct.unpack_from("<I", data, 4)
    end = 8 + size
    if end > len(data):
        raise _truncated(f"it says that it has {end} bytes, and has {len(data)}")
    canvas: tuple[int, int] | None = None
    images = frames = 0
    for kind, body in _chunks(data[:end], limits):
        size_here: tuple[int, int] | None = None
        if kind == b"VP8X" and canvas is None:
            if len(body) < 10:
                raise _truncated("its header is cut short")
            size_here = canvas = _three_bytes(body, 7) + 1, _three_bytes(body, 4) + 1
        elif kind == b"ANMF":
            if len(body) < 16:
                raise _truncated("a frame of it is cut short")
            frames += 1
            size_here = _three_bytes(body, 9) + 1, _three_bytes(body, 6) + 1
        elif kind in (b"VP8 ", b"VP8L"):
            images += 1
            size_here = _lossy_size(body) if kind == b"VP8 " else _lossless_size(body)
            canvas = canvas or size_here
        if size_here is not None:
            check_size(*size_here, limits)
    if frames > 1:
        raise _animation(frames)
    if canvas is None or not images + frames:
        raise invalid("the WebP is corrupt: it has no image")
    return WebpFile(*canvas, data[:end])


def _chunks(data: memoryview, limits: ImageLimits) -> Iterator[tuple[bytes, memoryview]]:
    """The type and body of each chunk [2.3]; a body of odd length has a byte behind it."""
    at, found = _HEADER_BYTES, 0
    while at < len(data):
        found += 1
        check_segments(found, "chunks", limits)
        kind, start = bytes(data[at : at + 4]), at + 8
        if start > len(data):
            raise _truncated(f"the chunk at byte {at} is cut short")
        (size,) = struct.unpack_from("<I", data, at + 4)
        if start + size > len(data):
            raise _truncated(
                f"chunk {kind!r} at byte {at} has {size} bytes, and {len(data) - start} are there"
            )
        yield kind, data[start : start + size]
        at = start + size + size % 2


def _lossy_size(body: memoryview) -> tuple[int, int]:
    """Height and width of a VP8 key frame (RFC 6386, section 9.1)."""
    if len(body) < 10 or bytes(body[3:6]) != b"\x9d\x01\x2a":
        raise invalid("the WebP is corrupt: its VP8 chunk is no key frame")
    if len(body) < 10 + (_three_bytes(body, 0) >> 5):
        raise _truncated("the first partition of its VP8 chunk is cut short")
    width, height = struct.unpack_from("<HH", body, 6)
    return height & 0x3FFF, width & 0x3FFF


def _lossless_size(body: memoryview) -> tuple[int, int]:
    """Height and width of a VP8L image [3.4]."""
    if len(body) < 5 or body[0] != 0x2F:
        raise invalid("the WebP is corrupt: its VP8L chunk has no signature")
    (bits,) = struct.unpack_from("<I", body, 1)
    return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1


def _three_bytes(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _animation(frames: int) -> Exception:
    return unsupported(f"the WEBP is an animation of {frames} frames; send one frame")


def _truncated(why: str) -> Exception:
    return invalid(f"the WebP is truncated: {why}")
