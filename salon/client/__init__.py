"""The SDK: score images, and fit learned rewards, over gRPC."""

from salon.client.examples import compared, labelled
from salon.client.learned_client import Export, Fit, LearnedRewardClient
from salon.client.reward_client import RewardClient
from salon.security import Security
from salon.wire.outcomes import Outcome

__all__ = [
    "Export",
    "Fit",
    "LearnedRewardClient",
    "Outcome",
    "RewardClient",
    "Security",
    "compared",
    "labelled",
]
