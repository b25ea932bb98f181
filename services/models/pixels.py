"""What several rewards ask of the pixels of a sample."""

import numpy as np

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from salon.wire.images import Pixels


def rgb(image: Pixels) -> Pixels:
    """The image as uint8 [H, W, 3]: gray is repeated three times."""
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def matching_reference(sample: Sample, minimum_side: int = 1) -> Pixels:
    """The sample's reference, when the image can be compared with it pixel by pixel.

    Args:
        sample: its image and its reference.
        minimum_side: the least height and width that can be judged.

    Returns:
        uint8 [H, W, C], the shape of the image.

    Raises:
        SampleError: MISSING_INPUT without a reference; INVALID_SAMPLE where the shapes differ or a
            side is too short.
    """
    if sample.reference is None:
        raise SampleError(
            reward_pb2.ERROR_CODE_MISSING_INPUT,
            "the sample has no reference: send the image to compare with",
        )
    if sample.image.shape != sample.reference.shape:
        raise SampleError(
            reward_pb2.ERROR_CODE_INVALID_SAMPLE,
            f"the image is {_shape(sample.image)} and the reference {_shape(sample.reference)}: "
            "send both at the same height, width and channels",
        )
    if min(sample.image.shape[:2]) < minimum_side:
        raise SampleError(
            reward_pb2.ERROR_CODE_INVALID_SAMPLE,
            f"the image and the reference are {_shape(sample.image)}: "
            f"each side must be at least {minimum_side}",
        )
    return sample.reference


def _shape(image: Pixels) -> str:
    return "x".join(str(size) for size in image.shape)
