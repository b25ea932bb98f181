"""How real an image looks to a critic that is trained against the generator's images.

Two variants. `wgan_gp` is the Wasserstein critic with gradient penalty of Gulrajani et al. 2017,
"Improved training of Wasserstein GANs" (arXiv 1704.00028), which SPIRAL (Ganin et al. 2018, arXiv
1804.01118) rewards with too. `spectral_norm` bounds the critic by its spectral norm and trains it
with the hinge loss: Miyato et al. 2018, "Spectral normalization for generative adversarial
networks" (arXiv 1802.05957).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Example, Labelled, Sample
from services.learned.hyperparameters import Hyperparameters
from services.learned.learner import Learner
from services.learned.network import ScalarNetwork
from services.learned.replay import Entry, ReplayBuffer
from services.learned.replay import Field as EntryField
from services.learned.trained_reward import TrainedReward


class DiscriminatorHyperparameters(Hyperparameters):
    """Adam's defaults are those of Gulrajani et al. 2017, algorithm 1."""

    variant: Literal["wgan_gp", "spectral_norm"] = Field(
        "wgan_gp", description="How the critic is bounded, and with it the loss."
    )
    gradient_penalty: float = Field(
        10.0, ge=0, description="λ, the weight of the gradient penalty; `wgan_gp` only."
    )
    centering: float = Field(
        0.0,
        ge=0,
        description="Weight of (½E[D(x)] + ½E[D(x̃)])² in the loss, 0 for none; `wgan_gp` only.",
    )
    conditional: bool = Field(
        False, description="Whether every sample brings a reference image, which the critic sees."
    )


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor, mix: Tensor
) -> Tensor:
    """Mean over samples of (‖∇ critic(x̂)‖₂ − 1)² at x̂ = ε·real + (1 − ε)·generated.

    Gulrajani et al. 2017, equation 3 without λ, and algorithm 1, lines 5 to 7.

    Args:
        critic: [B, C, H, W] -> [B], each output a function of its own sample alone.
        real: [B, C, H, W].
        generated: [B, C, H, W].
        mix: ε in [0, 1], one for each sample, [B].

    Returns:
        A scalar that can be differentiated with respect to the critic's weights.
    """
    weight = mix[:, None, None, None]
    between = (weight * real + (1 - weight) * generated).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - 1).square().mean()


def hinge_loss(real_scores: Tensor, generated_scores: Tensor) -> Tensor:
    """E[max(0, 1 − D(x))] + E[max(0, 1 + D(x̃))]: Miyato et al. 2018, equation 16, negated.

    Args:
        real_scores: D(x), [B].
        generated_scores: D(x̃), [B].
    """
    return relu(1 - real_scores).mean() + relu(1 + generated_scores).mean()


class Critic(Learner[DiscriminatorHyperparameters]):
    """Learns from real and generated images, with one replay buffer for each."""

    hyperparameters_type = DiscriminatorHyperparameters

    @classmethod
    def make_network(cls, hyperparameters: DiscriminatorHyperparameters) -> ScalarNetwork:
        """With twice the channels if it sees a reference beside the image."""
        return ScalarNetwork(
            _channels(hyperparameters),
            hyperparameters.image_size,
            hyperparameters.base_width,
            spectral=hyperparameters.variant == "spectral_norm",
        )

    @classmethod
    def make_buffers(cls, hyperparameters: DiscriminatorHyperparameters) -> dict[str, ReplayBuffer]:
        """`real` and `generated`."""
        size = hyperparameters.image_size
        image = EntryField((_channels(hyperparameters), size, size), torch.uint8)
        return {
            name: ReplayBuffer(hyperparameters.replay_capacity, {"image": image})
            for name in ("real", "generated")
        }

    def entry(self, example: Example) -> tuple[str, Entry]:
        """The image, with its reference behind it if the critic sees one."""
        if not isinstance(example, Labelled):
            raise InvalidRequest("a discriminator learns from labelled samples, not comparisons")
        name = "real" if example.real else "generated"
        return name, {"image": self.input(example.sample).copy()}

    def input(self, sample: Sample) -> NDArray[np.uint8]:
        """[C, H, W], or [2C, H, W]: image, then reference."""
        image = self.pixels(sample.image, "image")
        if not self.hyperparameters.conditional:
            return image
        if sample.reference is None:
            raise SampleError(
                reward_pb2.ERROR_CODE_MISSING_INPUT,
                "this instance is conditional and the sample has no reference image",
            )
        return np.concatenate([image, self.pixels(sample.reference, "reference")])

    def losses(self) -> dict[str, Tensor]:
        """The loss of the variant, the mean scores, and for `wgan_gp` the penalty without λ.

        Nothing in the Wasserstein loss says where zero lies: `centering` holds the scores there.
        With a reference the critic judges pairs, so the interpolation and the gradient's norm are
        those of pairs.
        """
        own = self.hyperparameters
        real, generated = self.draw("real")["image"], self.draw("generated")["image"]
        # Both in one batch: spectral normalisation then makes one power iteration a step.
        real_scores, generated_scores = self.network(torch.cat([real, generated])).chunk(2)
        means = {"real_score": real_scores.mean(), "generated_score": generated_scores.mean()}
        if own.variant == "spectral_norm":
            return means | {"loss": hinge_loss(real_scores, generated_scores)}
        mix = torch.rand(len(real), generator=self.generator).to(self.device)
        penalty = gradient_penalty(self.network, real, generated, mix)
        wasserstein = means["generated_score"] - means["real_score"]
        centre = (means["real_score"] + means["generated_score"]) / 2
        loss = wasserstein + own.gradient_penalty * penalty + own.centering * centre.square()
        return means | {"gradient_penalty": penalty, "loss": loss}


class Discriminator(TrainedReward):
    """The critic's output."""

    name = "discriminator"
    version = "1"
    description = (
        "The output of a critic fitted to tell real images from generated ones (WGAN-GP, or hinge "
        "loss with spectral normalisation); no unit."
    )
    learner = Critic


def _channels(hyperparameters: DiscriminatorHyperparameters) -> int:
    return hyperparameters.channels * (2 if hyperparameters.conditional else 1)
