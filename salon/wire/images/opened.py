"""Images that a caller hands over as Pillow's: what their files prove, where these are at hand."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from salon.wire.images import files
from salon.wire.images.exact import losslessly
from salon.wire.images.limits import UNLIMITED, unsupported

_WIDE = re.compile(r";16[BLN]$")


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Its pixels, uint8 [H, W] or [H, W, C], every value kept.

    A file that Pillow has opened and not yet decoded is judged as its bytes would be, whatever
    Pillow overlooks.

    Raises:
        SampleError: it has no exact form in 8 bits of RGB or gray, or its file is damaged.
        OSError, SyntaxError, ValueError: Pillow cannot decode its file, or has closed it.
    """
    _check_frames(image)
    _check_depth(image)
    file = _unread(image)
    if file is not None:
        pixels = file.decode()
        # As it was opened, unless `draft` made it smaller or gray.
        if (file.width, file.height) == image.size and _is_gray(image) == (pixels.shape[2] == 1):
            return pixels
    return np.asarray(losslessly(image))


def _check_frames(image: Image.Image) -> None:
    # An MPO is a JPEG with further pictures behind the first, as many phones write them.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise unsupported(
            f"the {image.format} has {frames} frames; send one of them, for instance image.copy()"
        )


def _check_depth(image: Image.Image) -> None:
    """Refuse pixels whose low bytes Pillow has cut off, or will.

    Pillow reads 16-bit RGB as if it were 8-bit. What tells is how it reads the file; where that is
    done, the file's name leads there, as long as the image is what it was.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return
    tiles = image.tile
    if not tiles and image.filename and image.format:
        try:
            with Image.open(image.filename, formats=[image.format]) as again:
                tiles = again.tile if again.size == image.size else []
        except (OSError, SyntaxError, ValueError):  # it is gone, or another one
            return
    if any(_has_more_than_bytes(tile.args) for tile in tiles):
        raise unsupported(
            f"the {image.format} has more than 8 bits a channel, of which Pillow keeps 8; reduce "
            "it in the way the score should see"
        )


def _has_more_than_bytes(arguments: Any) -> bool:
    """Whether a tile is read as, for instance, "RGB;16B", or as a PPM of values beyond 255."""
    match arguments:
        case (str(), int(greatest)):
            return greatest > 255
        case str(packed) | (str(packed), *_):
            # Without a byte order, as in "BGR;16", it is a whole pixel that has 16 bits.
            return bool(_WIDE.search(packed))
    return False


def _unread(image: Image.Image) -> files.ImageFile | None:
    """The file of an image that Pillow has opened and not decoded, if it is of a known format."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or image.tell() > 0:
        return None
    declared = "JPEG" if image.format == "MPO" else image.format
    if declared not in ("PNG", "JPEG", "WEBP"):
        return None
    data = _bytes_of(image)
    return files.check(memoryview(data), declared, UNLIMITED) if data else None


def _bytes_of(image: ImageFile.ImageFile) -> bytes:
    """All of its file, whose position is then as it was; empty where it cannot be had."""
    stream = image.fp
    if stream is None:
        return Path(os.fsdecode(image.filename)).read_bytes() if image.filename else b""
    position = stream.tell()
    try:
        stream.seek(0)
        return stream.read()
    finally:
        stream.seek(position)


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")
