"""Small learned rewards and easy things for them to learn."""

from typing import Any

import numpy as np

from salon.serving import Compared, Example, FitOrder, Fitted, Labelled, Sample
from services.learned.trained_reward import LearnedConfig, TrainedReward
from services.rewards.discriminator import Discriminator

SMALL = {
    "image_size": 16,
    "channels": 1,
    "base_width": 8,
    "learning_rate": 1e-3,
    "batch_size": 16,
    "replay_capacity": 64,
}


def sample(image: Any, reference: Any = None) -> Sample:
    return Sample(image, "", {}, reference)


def images(
    count: int, low: int, high: int, seed: int = 0, side: int = 16, channels: int = 1
) -> Any:
    """Noise [N, H, W, C] of values from `low` to below `high`."""
    return np.random.default_rng(seed).integers(low, high, (count, side, side, channels), np.uint8)


def light(count: int, seed: int = 0) -> list[Sample]:
    return [sample(image) for image in images(count, 140, 256, seed)]


def dark(count: int, seed: int = 1) -> list[Sample]:
    return [sample(image) for image in images(count, 0, 116, seed)]


def light_is_real(count: int = 32) -> list[Example]:
    real = [Labelled(one, real=True) for one in light(count)]
    return real + [Labelled(one, real=False) for one in dark(count)]


def brighter_is_better(count: int, seed: int = 0) -> list[Example]:
    """Pairs of plain images; of equally bright ones neither is preferred."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, 2))
    return [
        Compared(plain(first), plain(second), float(np.heaviside(first - second, 0.5)))
        for first, second in levels.tolist()
    ]


def plain(level: int) -> Sample:
    return sample(np.full((16, 16, 1), level, np.uint8))


def discriminator(folder: Any, **options: Any) -> Discriminator:
    return Discriminator(LearnedConfig(state_dir=folder, **options))


def fit(
    reward: TrainedReward,
    instance: str,
    examples: list[Example],
    steps: int = 2,
    *,
    request_id: str = "",
    base_version: str = "",
    **hyperparameters: Any,
) -> Fitted:
    """Fit for a caller who waits; without `request_id` each call is a new request."""
    request_id = request_id or f"{instance}-{np.random.default_rng().integers(2**62)}"
    order = FitOrder(request_id, base_version, examples, steps, hyperparameters)
    return reward.fit(instance, order, lambda: True)


def scores(reward: TrainedReward, instance: str, samples: list[Sample]) -> list[Any]:
    with reward.opened(instance) as opened:
        return list(opened.score(samples))
