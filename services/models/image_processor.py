"""From images of any size to the pixels that a CLIP-like vision tower reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor

from salon.errors import InvalidRequest
from salon.wire.images import Pixels
from services.models.pretrained import load_part

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the images CLIP was trained on: github.com/openai/CLIP, clip/clip.py."""

_BICUBIC = 3  # as Pillow numbers it
_LONGEST = 8


@dataclass(frozen=True)
class ImageProcessor:
    """Shorter side to `size`, bicubic with antialiasing; centre crop; scale to 0..1; normalise.

    The preprocessing of github.com/openai/CLIP (clip/clip.py, `_transform`), which BLIP and
    open_clip share. The resize is torch's for uint8, horizontally and then vertically, as
    transformers has it where torchvision is installed. Measured on photographs and noise against
    Pillow 13: 99 % of the pixels equal, the others off by one level of 256, rarely two, at an
    eighth of the time for 512 x 512. Images more than twice as tall as wide differ more, since
    Pillow 13 takes those vertically first.
    """

    size: int
    crop: tuple[int, int]
    """Height and width of what the tower reads, at most `size`."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    pads: bool = False
    """Whether images are fitted into what the tower reads, instead of cropped: see `padding`."""

    @classmethod
    def load(cls, source: str) -> Self:
        """Of a model's folder or hub id.

        Raises:
            InvalidRequest: there is none, or it asks for another preprocessing than this.
        """
        config = load_part(AutoImageProcessor, source).to_dict()
        size = _entry(config, "size", "shortest_edge")
        crop = _entry(config, "crop_size", "height"), _entry(config, "crop_size", "width")
        bicubic, cropped = config.get("resample") == _BICUBIC, config.get("do_center_crop")
        whole = all(isinstance(side, int) and side > 0 for side in (size, *crop))
        if not whole or not bicubic or not cropped:
            raise InvalidRequest(
                f"the image processor of {source!r} is not CLIP's: it must resize the shortest "
                f"edge, bicubic, and crop the centre; it has {_summary(config)}"
            )
        if max(crop) > size:
            raise InvalidRequest(
                f"the image processor of {source!r} crops {crop} out of {size} pixels; "
                "crop_size must not exceed size"
            )
        mean, std = config.get("image_mean"), config.get("image_std")
        if not _is_colour(mean) or not _is_colour(std) or 0 in std:
            raise InvalidRequest(
                f"the image processor of {source!r} has image_mean {mean!r} and image_std {std!r}: "
                "each is three numbers, of red, green and blue, and no deviation is 0"
            )
        return cls(size, crop, tuple(mean), tuple(std))

    def padding(self) -> Self:
        """The same, but the whole image is fitted into what the tower reads, amid black.

        As `image_transform` with `resize_longest_max` does in github.com/tgxs002/HPSv2,
        hpsv2/src/open_clip/transform.py. Pixels are floats when they are resized there: not rounded
        to levels, nor kept from overshooting black and white.
        """
        return replace(self, pads=True)

    def __call__(self, images: Sequence[Pixels], device: torch.device) -> Tensor:
        """float32 [N, 3, crop height, crop width] on `device`.

        Args:
            images: uint8 [H, W, 3], or [H, W, 1], whose gray becomes equal red, green and blue.
            device: normalisation runs there; what travels to it are the small images.
        """
        fit = self._pad if self.pads else self._crop
        pixels = torch.stack([fit(image) for image in images]).to(device).float() / 255
        mean, std = (pixels.new_tensor(part)[:, None, None] for part in (self.mean, self.std))
        return (pixels - mean) / std

    def _crop(self, image: Pixels) -> Tensor:
        pixels = _to_tensor(_middle(image))
        height, width = pixels.shape[-2:]
        short = min(height, width)
        # Rounded down, as torchvision's Resize does.
        resized = self.size * height // short, self.size * width // short
        if resized != (height, width):
            pixels = functional.interpolate(pixels, resized, mode="bicubic", antialias=True)
        top, left = (resized[0] - self.crop[0]) // 2, (resized[1] - self.crop[1]) // 2
        cropped = pixels[0, :, top : top + self.crop[0], left : left + self.crop[1]]
        return cropped.expand(3, -1, -1)

    def _pad(self, image: Pixels) -> Tensor:
        pixels = _to_tensor(image).float()
        sides = pixels.shape[-2:]
        scale = min(whole / side for whole, side in zip(self.crop, sides, strict=True))
        # At least one pixel of a line, where the authors' code would fail.
        resized = [max(1, round(side * scale)) for side in sides]
        if resized != list(sides):
            pixels = functional.interpolate(pixels, resized, mode="bicubic", antialias=True)
        rows, columns = (whole - side for whole, side in zip(self.crop, resized, strict=True))
        top, left = rows // 2, columns // 2
        padded = functional.pad(pixels[0], (left, columns - left, top, rows - top))
        return padded.expand(3, -1, -1)


def _entry(config: dict[str, Any], key: str, part: str) -> Any:
    section = config.get(key)
    return section.get(part) if isinstance(section, dict) else None


def _is_colour(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) != len(CLIP_MEAN):
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _to_tensor(image: Pixels) -> Tensor:
    """uint8 [1, C, H, W]."""
    # A copy, because torch warns about arrays that are read-only.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _middle(image: Pixels) -> Pixels:
    """At most eight times as long as wide: the centre crop reads no more of it.

    A line of 1 x 4096 pixels would take 600 MB once its shorter side were 224.
    """
    longest = _LONGEST * min(image.shape[:2])
    # As much off one end as off the other, or the middle would move by half a pixel.
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


def _summary(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in ("size", "resample", "do_center_crop", "crop_size")}
