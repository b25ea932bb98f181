"""The image that a reward compares every sample with."""

import os
import stat

from salon.errors import InvalidRequest, SampleError
from salon.wire.images import ImageLimits, Pixels, decode, encode

MAX_BYTES = 64 * 1024 * 1024
"""Largest file that is read: raw RGB of the most pixels that are decoded takes less."""


def read_reference(path: str) -> Pixels:
    """The pixels of a PNG, JPEG or WebP file, uint8 [H, W, C], C = 3 (RGB) or 1 (gray).

    A trainer takes the path from a record in Redis: it may name anything, and of what is no picture
    no byte is told.

    Raises:
        InvalidRequest: there is no such file, or it cannot be decoded without changing it.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise InvalidRequest(f"cannot read reference {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise InvalidRequest(f"cannot read reference {path!r}: {error}") from None
    try:
        (encoded,) = encode([data], f"reference {path}")
    except InvalidRequest:
        raise InvalidRequest(
            f"reference {path}: its {len(data)} bytes are no PNG, JPEG or WebP file; name an image"
        ) from None
    try:
        return decode(encoded.message, encoded.data, ImageLimits())
    except SampleError as error:
        raise InvalidRequest(f"reference {path}: {error}") from None


def _read(path: str) -> bytes:
    # Not blocking: opening a named pipe would wait for its writer without end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidRequest(f"reference {path} is no regular file; name an image")
        data = file.read(MAX_BYTES + 1)  # some files of /proc say that they are empty
    if len(data) > MAX_BYTES:
        raise InvalidRequest(
            f"reference {path} has more than {MAX_BYTES} bytes, the most that are read; name an "
            "image"
        )
    return data
