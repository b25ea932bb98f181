"""How far an image is from a target image in the features of VGG19: in content, or in style.

Content is the feature reconstruction distance of Johnson, Alahi and Fei-Fei 2016, "Perceptual
Losses for Real-Time Style Transfer and Super-Resolution" (arXiv 1603.08155), equation 2, at the
layer that Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks"
(CVPR), chose for content. Style is their equations 3 to 5.

Both use the maps after the ReLU, as Gatys' own code does (github.com/leongatys/
PytorchNeuralStyleTransfer: r11 … r51 and r42), and VGG19 as trained: max pooling, weights not
rescaled.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import ModelConfig, Reward, Sample
from salon.wire.images import Pixels
from services.models.device import resolve
from services.models.pixels import matching_reference, rgb
from services.models.vgg import Vgg19
from services.models.weights import check_weights, load_state_dict, version_of

CONTENT_LAYERS = ("conv4_2",)
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")

_PIXELS_PER_PASS = 1024 * 1024
"""Of the images of one size that go through the network together: conv1_2 makes 256 bytes of each
in float32, twice with the map it is made from."""


class VggConfig(ModelConfig):
    """Which VGG19."""

    model: str = Field(
        "timm/vgg19.tv_in1k:model.safetensors",
        description="A file in torchvision's state-dict layout, or owner/name:file on the hub.",
    )


def feature_distance(maps: Tensor, target: Tensor) -> Tensor:
    """The squared distance of two sets of maps over their size: Johnson et al. 2016, equation 2.

    Args:
        maps: [N, C, H, W].
        target: [N, C, H, W].

    Returns:
        float32 [N].
    """
    return (maps.float() - target.float()).square().mean(dim=(1, 2, 3))


def gram(maps: Tensor) -> Tensor:
    """The Gram matrix of each set of maps over its number of places: Gatys et al. 2016, equation 3.

    The paper's G is this times M = H W.

    Args:
        maps: [N, C, H, W].

    Returns:
        float32 [N, C, C].
    """
    # In float32: a sum of float16 products over the whole map overflows.
    vectors = maps.float().flatten(start_dim=2)
    return vectors @ vectors.transpose(1, 2) / vectors.shape[2]


def style_distance(maps: Tensor, target: Tensor) -> Tensor:
    """E of one layer, Σ(G − A)² / (4 C² M²): Gatys et al. 2016, equation 4.

    Args:
        maps: [N, C, H, W].
        target: [N, C, H, W].

    Returns:
        float32 [N].
    """
    return (gram(maps) - gram(target)).square().mean(dim=(1, 2)) / 4


class VggDistance(Reward):
    """Minus the mean over some layers of a distance between image and reference."""

    Config = VggConfig
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_REFERENCE)
    upper_bound = 0.0
    layers: ClassVar[tuple[str, ...]]
    minimum_side: ClassVar[int]
    """What the poolings before the last layer leave one pixel of."""

    def __init__(self, config: VggConfig) -> None:
        """Load the network, as deep as the layers need it."""
        self._device, dtype = resolve(config)
        state = load_state_dict(config.model)
        network = Vgg19(state, self.layers[-1])
        features = {name: weight for name, weight in state.items() if name.startswith("features.")}
        check_weights(features, config.model)  # not those of the classifier, which are not read
        self._network = network.to(self._device, dtype)
        self.version = version_of("1", [config.model], dtype)

    @abstractmethod
    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """[N] from two [N, C, H, W] of one layer."""

    def example(self) -> Sample:
        """The usual example with its own image as the reference."""
        example = super().example()
        return replace(example, reference=example.image)

    def cost(self, sample: Sample) -> float:
        """The area in units of 512 x 512 pixels: the work is proportional to it."""
        height, width = sample.image.shape[:2]
        return float(height * width) / 512**2

    def score(self, samples: Sequence[Sample]) -> list[float | SampleError]:
        """Minus the distance of each image and its reference; images of one size go together."""
        results: dict[int, float | SampleError] = {}
        groups: dict[tuple[int, ...], list[tuple[int, Pixels, Pixels]]] = defaultdict(list)
        for index, sample in enumerate(samples):
            try:
                reference = matching_reference(sample, self.minimum_side)
            except SampleError as error:
                results[index] = error
                continue
            pair = (index, rgb(sample.image), rgb(reference))
            groups[sample.image.shape[:2]].append(pair)
        for (height, width), pairs in groups.items():
            size = max(1, _PIXELS_PER_PASS // (height * width))
            for start in range(0, len(pairs), size):
                indices, images, references = zip(*pairs[start : start + size], strict=True)
                results.update(zip(indices, self._distances(images, references), strict=True))
        return [results[index] for index in range(len(samples))]

    def _distances(self, images: Sequence[Pixels], references: Sequence[Pixels]) -> list[float]:
        """Minus the distances of some pairs of one size."""
        # A job that approaches one target sends it with every sample: it is computed once.
        different = {reference.tobytes(): reference for reference in references}
        order = {key: index for index, key in enumerate(different)}
        which = torch.tensor([order[r.tobytes()] for r in references], device=self._device)
        total = torch.zeros(len(images), device=self._device)
        with torch.inference_mode():
            layers = zip(self._maps(images), self._maps([*different.values()]), strict=True)
            for maps, targets in layers:
                total += self.distance(maps, targets[which])
        return (-total / len(self.layers)).tolist()

    def _maps(self, images: Sequence[Pixels]) -> Iterator[Tensor]:
        pixels = torch.from_numpy(np.stack(images)).to(self._device)
        return self._network.maps(pixels, self.layers)


class Perceptual(VggDistance):
    """Images that show what their reference shows score high."""

    name = "perceptual"
    description = (
        "Minus the mean squared difference of VGG19's relu4_2 maps of image and reference."
    )
    layers = CONTENT_LAYERS
    minimum_side = 8

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """Of the maps themselves."""
        return feature_distance(maps, target)


class Style(VggDistance):
    """Images with the textures and colours of their reference score high, wherever they are."""

    name = "style"
    description = (
        "Minus the distance of the Gram matrices of VGG19's relu1_1, 2_1, 3_1, 4_1 and 5_1 maps of "
        "image and reference, each layer with weight 1/5."
    )
    layers = STYLE_LAYERS
    minimum_side = 16

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """Of their Gram matrices."""
        return style_distance(maps, target)
