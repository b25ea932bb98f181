"""What of Pillow's images has an exact form in 8 bits of RGB or gray."""

from typing import cast

from PIL import Image

from salon.wire.images.limits import unsupported


def losslessly(image: Image.Image) -> Image.Image:
    """`image` as RGB or L (8-bit gray) with every pixel's value kept.

    Raises:
        SampleError: UNSUPPORTED_IMAGE, where that is impossible.
    """
    gray = image.mode in ("1", "L", "LA")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise unsupported(
            f"an image of Pillow mode {image.mode} has no exact 8-bit RGB or gray form; "
            'convert it in the way the score should see, for instance image.convert("RGB")'
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        # The extrema of one band are one pair; Pillow's annotation covers many bands as well.
        lowest_alpha, _ = cast("tuple[int, int]", rgba.getchannel("A").getextrema())
        if lowest_alpha < 255:
            raise unsupported(
                f"the image ({image.mode}) has transparent pixels; lay it on a background first, "
                "for instance with PIL.Image.alpha_composite"
            )
        image = rgba.convert("RGB")
    return image.convert("L" if gray else "RGB")
