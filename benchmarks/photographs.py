"""Real photographs to score, cut to one size; noise or flat colour would mislead a JPEG encoder."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from salon.errors import InvalidRequest

# Colour photographs that ship inside packages; those of scikit-image are used if it is installed.
SOURCES = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/rocket.jpg"),
}


def find_photographs() -> list[Path]:
    """The photographs of the installed packages.

    Raises:
        InvalidRequest: there are none.
    """
    found = []
    for package, files in SOURCES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            found += [folder / file for file in files if (folder / file).exists()]
    if not found:
        raise InvalidRequest("no photographs to score: pip install scikit-learn, which has two")
    return found


def cut_squares(files: list[Path], count: int, side: int) -> NDArray[np.uint8]:
    """`count` cuts uint8 [count, side, side, 3], of each file in turn.

    A cut is as large a square as its photograph holds, scaled to `side`; the cuts of one photograph
    lie evenly spread along its longer side.
    """
    photographs = [Image.open(file).convert("RGB") for file in files]
    cuts_of_each = -(-count // len(files))
    cuts: list[NDArray[np.uint8]] = []
    for index in range(count):
        photograph = photographs[index % len(files)]
        place = (index // len(files) + 0.5) / cuts_of_each
        cut = ImageOps.fit(photograph, (side, side), centering=(place, place))
        cuts.append(np.asarray(cut))
    return np.stack(cuts)
