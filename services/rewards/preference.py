"""How much a judge would like an image, learned from which of two images the judge prefers.

The model is Bradley and Terry's (1952, "Rank analysis of incomplete block designs", Biometrika
39), fitted as by Christiano et al. 2017, "Deep reinforcement learning from human preferences"
(arXiv 1706.03741), section 2.2.3.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from salon.errors import InvalidRequest
from salon.serving import Compared, Example
from services.learned.hyperparameters import Hyperparameters
from services.learned.learner import Learner
from services.learned.network import ScalarNetwork
from services.learned.replay import Entry, ReplayBuffer
from services.learned.replay import Field as EntryField
from services.learned.trained_reward import TrainedReward


class PreferenceHyperparameters(Hyperparameters):
    """Adam's defaults are PyTorch's: nothing here is adversarial."""

    base_width: int = Field(
        32, ge=1, le=256, description="Channels after the network's first layer."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Of Adam.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Of Adam.")
    l2: float = Field(
        0.0, ge=0, description="Weight of ½‖θ‖² in the loss (θ: all weights), 0 for none."
    )


def bradley_terry_loss(first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """Mean of −μ log P − (1 − μ) log(1 − P), where P = exp(r₁) / (exp(r₁) + exp(r₂)) = σ(r₁ − r₂).

    Christiano et al. 2017, section 2.2.3, for single images in place of trajectories.

    Args:
        first: r₁, the reward of the first image of each pair, [B].
        second: r₂, [B].
        preference: μ, the probability that the first is preferred: 1, 0, or ½ for a tie, [B].
    """
    return binary_cross_entropy_with_logits(first - second, preference)


class PreferenceModel(Learner[PreferenceHyperparameters]):
    """Learns from pairs of images; the pairs are its replay buffer."""

    hyperparameters_type = PreferenceHyperparameters

    @classmethod
    def make_network(cls, hyperparameters: PreferenceHyperparameters) -> ScalarNetwork:
        """The reward r of one image."""
        return ScalarNetwork(
            hyperparameters.channels, hyperparameters.image_size, hyperparameters.base_width
        )

    @classmethod
    def make_buffers(cls, hyperparameters: PreferenceHyperparameters) -> dict[str, ReplayBuffer]:
        """`comparison`: the two images and the label."""
        size, channels = hyperparameters.image_size, hyperparameters.channels
        fields = {
            "images": EntryField((2, channels, size, size), torch.uint8),
            "preference": EntryField((), torch.float32),
        }
        return {"comparison": ReplayBuffer(hyperparameters.replay_capacity, fields)}

    def entry(self, example: Example) -> tuple[str, Entry]:
        """Both images and the label."""
        if not isinstance(example, Compared):
            raise InvalidRequest("a preference model learns from comparisons, not labelled samples")
        images = np.stack([self.input(example.first), self.input(example.second)])
        preference = np.array(example.preference, np.float32)
        return "comparison", {"images": images, "preference": preference}

    def losses(self) -> dict[str, Tensor]:
        """The cross-entropy, and the share of pairs that are ranked as the judge ranks them."""
        batch = self.draw("comparison")
        preference = batch["preference"]
        rewards = self.network(batch["images"].flatten(0, 1))
        first, second = rewards.unflatten(0, (-1, 2)).unbind(1)
        loss = bradley_terry_loss(first, second, preference)
        # Of a tie there is nothing to get right.
        decided = preference != 0.5
        # By signs, so that who finds both equal is not right whenever the second is preferred.
        agreed = ((first - second).sign() == (preference - 0.5).sign())[decided]
        metrics = {"loss": loss}
        if len(agreed):
            metrics["accuracy"] = agreed.float().mean()
        return metrics

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam; its weight decay is the gradient of ½·l2·‖θ‖²."""
        own = self.hyperparameters
        betas = (own.beta1, own.beta2)
        return torch.optim.Adam(
            self.network.parameters(), own.learning_rate, betas, weight_decay=own.l2
        )


class Preference(TrainedReward):
    """The reward of a Bradley-Terry model."""

    name = "preference"
    version = "1"
    description = (
        "The reward of a Bradley-Terry model fitted to comparisons of two images: an image that "
        "scores d higher is preferred with probability 1 / (1 + exp(-d))."
    )
    learner = PreferenceModel
