"""Where `salon.serving` was before: rewards that import from here go on working."""

from salon.serving import ModelConfig, Reward, RewardConfig, Sample, Score

__all__ = ["ModelConfig", "Reward", "RewardConfig", "Sample", "Score"]
