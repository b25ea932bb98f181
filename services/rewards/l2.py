"""How far an image is from a target image, pixel by pixel.

The mean of (x - y)^2 over height, width and channels, with pixels in [0, 1]: the plainest distance
to a target, which Ganin et al. 2018, "Synthesizing Programs for Images using Reinforced Adversarial
Learning" (arXiv 1804.01118), argue a learned discriminator should replace.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample
from services.models.pixels import matching_reference


class L2(Reward):
    """Images close to their reference score high."""

    name = "l2"
    version = "1"
    description = "Minus the mean squared difference of image and reference, pixels in [0, 1]."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_REFERENCE)
    lower_bound = -1.0
    upper_bound = 0.0

    def example(self) -> Sample:
        """The usual example with its own image as the reference."""
        example = super().example()
        return replace(example, reference=example.image)

    def score(self, samples: Sequence[Sample]) -> list[float | SampleError]:
        """Minus the mean squared difference of each image and its reference."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float | SampleError:
        try:
            reference = matching_reference(sample)
        except SampleError as error:
            return error
        difference = np.subtract(sample.image, reference, dtype=np.float32)
        return -float(np.mean(np.square(difference), dtype=np.float64)) / 255**2
