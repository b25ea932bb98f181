"""How many kilobytes an image takes as a JPEG: less, or more, is rewarded.

Black et al. 2023, "Training Diffusion Models with Reinforcement Learning" (arXiv 2305.13301),
section 5.1; quality and unit as in the authors' code, ddpo_pytorch/rewards.py at
github.com/kvablack/ddpo-pytorch.
"""

import io
import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import IO

import PIL
from PIL import Image, features

from salon.serving import Reward, Sample
from salon.wire.images import Pixels

QUALITY = 95
THREADS = min(os.cpu_count() or 1, 4)
"""More would wait for one another around the encoder, where Python's global lock is held."""
MAX_BATCH = 4
"""An encoder gains nothing from a large batch, which would keep the other threads idle."""

# Another encoder, or another release of it, makes files of other sizes.
_ENCODER = (
    f"libjpeg-turbo-{features.version('libjpeg_turbo')}"
    if features.check_feature("libjpeg_turbo")
    else f"libjpeg-{features.version('jpg')}"
)
VERSION = f"1+pillow-{PIL.__version__}+{_ENCODER}"


_spare: deque[IO[bytes]] = deque()
"""Files in memory that nobody writes to just now: at most as many as ever were written at once."""


def jpeg_kilobytes(image: Pixels) -> float:
    """The length in bytes over 1000 of Pillow's JPEG, quality 95, default chroma subsampling.

    Args:
        image: uint8 [H, W, 3] (RGB) or [H, W, 1] (gray).
    """
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    try:
        file = _spare.pop()
    except IndexError:
        file = _memory_file()
    try:
        file.seek(0)
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        return file.tell() / 1000
    finally:
        _spare.append(file)


def _memory_file() -> IO[bytes]:
    # Pillow lets go of Python's global lock only while it writes into a file of the system's. With
    # a BytesIO the server's other threads waited 0.6 ms for each image of 512 x 512.
    if sys.platform != "linux":
        return io.BytesIO()
    # Open as long as the process lives.
    return open(os.memfd_create("jpeg"), "wb", buffering=0, closefd=False)


class JpegCompressibility(Reward):
    """Small files score high."""

    name = "jpeg_compressibility"
    version = VERSION
    description = "Minus the kilobytes (1000 bytes) of the image as a JPEG of quality 95."
    unit = "kB"
    upper_bound = 0.0
    threads = THREADS
    max_batch = MAX_BATCH

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """Minus the kilobytes of each image."""
        return [-jpeg_kilobytes(sample.image) for sample in samples]


class JpegIncompressibility(Reward):
    """Large files score high."""

    name = "jpeg_incompressibility"
    version = VERSION
    description = "The kilobytes (1000 bytes) of the image as a JPEG of quality 95."
    unit = "kB"
    lower_bound = 0.0
    threads = THREADS
    max_batch = MAX_BATCH

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """The kilobytes of each image."""
        return [jpeg_kilobytes(sample.image) for sample in samples]
