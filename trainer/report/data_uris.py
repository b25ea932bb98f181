"""Pictures inside a page, as data URIs of a bounded size."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_PICTURE = 256  # pixels; the page shows none larger
MOST_PNG_BYTES = 4 * 2**20
WEBP_QUALITY = 85


def data_uris(images: Sequence[NDArray[np.uint8]]) -> tuple[list[str], bool]:
    """Each image [H, W, 3], made smaller where it is larger than the page shows it.

    Returns:
        The URIs, and whether the pictures are WebP, with loss: 128 photographs of 256 x 256 pixels
        would make a page of some 20 MB as PNG, and are 4 MB so. Small ones stay exact.
    """
    pictures = []
    for image in images:
        picture = Image.fromarray(image)
        picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
        pictures.append(picture)
    exact = [_encode(picture, "PNG", optimize=True) for picture in pictures]
    if sum(map(len, exact)) <= MOST_PNG_BYTES:
        return [_uri("png", data) for data in exact], False
    lossy = [_encode(picture, "WEBP", quality=WEBP_QUALITY) for picture in pictures]
    return [_uri("webp", data) for data in lossy], True


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
