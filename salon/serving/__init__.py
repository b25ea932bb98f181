"""What the author of a reward subclasses, and what its methods take and give."""

from salon.serving.learned_reward import (
    Compared,
    Example,
    Exported,
    FitOrder,
    Fitted,
    Instance,
    Labelled,
    LearnedReward,
)
from salon.serving.reward import Dtype, ModelConfig, Reward, RewardConfig, Sample, Score

__all__ = [
    "Compared",
    "Dtype",
    "Example",
    "Exported",
    "FitOrder",
    "Fitted",
    "Instance",
    "Labelled",
    "LearnedReward",
    "ModelConfig",
    "Reward",
    "RewardConfig",
    "Sample",
    "Score",
]
