"""Images that a caller hands over as Pillow's: what their files prove, where these are at hand."""

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from salon.errors import SampleError
from salon.wire.images import files
from salon.wire.images.exact import losslessly
from salon.wire.images.limits import UNLIMITED, invalid, unsupported

# By Pillow's name of a format: its name here, of those whose files are judged. An MPO is a JPEG
# with further pictures behind the first, as many phones write them.
_JUDGED = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}
_BYTES_ALONE = ("JPEG", "WEBP")  # of those, what has 8 bits a channel
_WIDE = re.compile(r";16[BLN]$")


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Its pixels, uint8 [H, W] or [H, W, C], every value kept.

    Where Pillow has opened a file, of PNG, JPEG or WebP, and not decoded it, the file is judged as
    its bytes would be, whatever Pillow overlooks; and so is the file of an image that it has
    decoded, as long as a name or an open stream leads there and the pixels are still the file's.

    Pillow itself decides where nothing leads to the file: in a copy of an image, as all that
    transforms one returns (`convert`, `resize`, `ImageOps`), and in one that was decoded from a
    stream, of which only PNG, TIFF and MPO keep hold. Nor does it tell of JPEG 2000 and AVIF that
    they had more than 8 bits a channel. Whoever has the bytes of a file should pass these.

    Raises:
        SampleError: it has no exact form in 8 bits of RGB or gray, or its file is damaged.
        OSError, ValueError: its file cannot be read, or is closed.
    """
    _check_frames(image)
    if isinstance(image, ImageFile.ImageFile):
        # Pillow lets go of the file that it has decoded.
        if image.tile or image.fp is not None:
            pixels = _read_strictly(image)
            if pixels is not None:
                return pixels
        else:
            _check_source(image)
    try:
        image.load()
    # Its decoders raise whatever they stumble over.
    except Exception as error:  # noqa: BLE001
        raise invalid(f"Pillow cannot decode the image: {error!r}") from None
    return np.asarray(losslessly(image))


def _check_frames(image: Image.Image) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise unsupported(
            f"the {image.format} has {frames} frames; send one of them, for instance image.copy()"
        )


def _read_strictly(image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """The pixels of an image that is not decoded; None where Pillow must decode it."""
    _check_depth(image, image.tile)
    if image.format not in _JUDGED or image.tell() > 0:
        return None
    data = _bytes_of(image)
    if not data:
        return None
    file = files.check(memoryview(data), _JUDGED[image.format], UNLIMITED)
    pixels = file.decode()
    # As it was opened, unless `draft` made it smaller or gray.
    same = (file.width, file.height) == image.size and _is_gray(image) == (pixels.shape[2] == 1)
    return pixels if same else None


def _check_source(image: ImageFile.ImageFile) -> None:
    """Judge the file of an image that is decoded, if one leads there that still is this image's."""
    if image.format is None or image.tell() > 0:
        return
    kind = _JUDGED.get(image.format, image.format)
    try:
        data = _bytes_of(image)
        again = Image.open(io.BytesIO(data), formats=[kind]) if data else None
    except (OSError, SyntaxError, ValueError, KeyError):  # it is gone, or another one
        return
    if again is None or again.size != image.size:
        return
    with again:
        if isinstance(again, ImageFile.ImageFile) and kind not in _BYTES_ALONE:
            _check_depth(image, again.tile)
        if kind not in _JUDGED:
            return
        try:
            files.check(memoryview(data), kind, UNLIMITED).decode()
        except SampleError:
            if _is_unchanged(image, again):
                raise


def _is_unchanged(image: Image.Image, again: Image.Image) -> bool:
    """Whether the pixels of a decoded image are those of its file: nobody has changed either."""
    try:
        again.load()
    # Its decoders raise whatever they stumble over.
    except Exception:  # noqa: BLE001
        return False
    return again.mode == image.mode and again.tobytes() == image.tobytes()


def _check_depth(image: Image.Image, tiles: list[Any]) -> None:
    """Refuse pixels whose low bytes Pillow cuts off.

    It reads 16-bit RGB as if it were 8-bit. What tells is how it reads the file: its `tiles`.
    """
    if image.mode in ("L", "LA", "RGB", "RGBA") and any(map(_has_more_than_bytes, tiles)):
        raise unsupported(
            f"the {image.format} has more than 8 bits a channel, of which Pillow keeps 8; reduce "
            "it in the way the score should see"
        )


def _has_more_than_bytes(tile: Any) -> bool:
    """Whether it is read as, for instance, "RGB;16B", or as a PPM of values beyond 255."""
    match tile.args:
        case _ if tile.codec_name == "SGI16":
            return True
        case (str(), int(greatest)):
            return greatest > 255
        case str(packed) | (str(packed), *_):
            # Without a byte order, as in "BGR;16", it is a whole pixel that has 16 bits.
            return bool(_WIDE.search(packed))
    return False


def _bytes_of(image: ImageFile.ImageFile) -> bytes:
    """All of its file, whose position is then as it was; empty where it cannot be had."""
    # What several frames may lie in, and PNG, Pillow also keeps under another name.
    for stream in (image.fp, getattr(image, "_fp", None)):
        if stream is None or _is_closed(stream):
            continue
        position = stream.tell()
        try:
            stream.seek(0)
            return stream.read()
        finally:
            stream.seek(position)
    return Path(os.fsdecode(image.filename)).read_bytes() if image.filename else b""


def _is_closed(stream: Any) -> bool:
    try:
        return bool(getattr(stream, "closed", False))
    except ValueError:  # Pillow's stand-in for one that it has closed
        return True


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")
