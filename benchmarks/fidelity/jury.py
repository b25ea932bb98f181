"""The local stack's rewards in this process: what a study asks of them is scores, not speed."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salon.errors import SampleError
from salon.serving import Reward, Sample, Score
from salon.settings import Settings
from salon.stack.local_services import local_services
from services.server.reward_modules import choose_rewards
from trainer.rewards.scorer import ScoredBatch


def load_jury(names: Sequence[str]) -> dict[str, Reward]:
    """The rewards `names`, on the tiny models that the local stack serves them with."""
    settings = Settings()
    found = {}
    for service in local_services(settings, names):
        flags = service.command_options(settings)
        options = dict(flag.split("=", 1) for flag in flags if flag != "--set")
        for choice in choose_rewards(service.served, options):
            found[choice.reward.name] = choice.load()
    return {name: found[name] for name in names}


class Jury:
    """A `RewardScorer` that scores before `submit` returns, and counts what it is asked."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.queries = 0
        self._rewards = rewards

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> "Future[ScoredBatch]":
        """A future that is done; `queries` grows by the number of images.

        Raises:
            SampleError: a reward gave this in place of a score.
        """
        self.queries += len(images)
        samples = [Sample(image, prompt, {}) for image, prompt in zip(images, prompts, strict=True)]
        scores = {
            name: np.array([_value(answer) for answer in reward.score(samples)], np.float64)
            for name, reward in self._rewards.items()
        }
        versions = {name: (reward.version,) for name, reward in self._rewards.items()}
        future: Future[ScoredBatch] = Future()
        future.set_result(ScoredBatch(scores, np.ones(len(images), bool), (), versions))
        return future


def _value(answer: float | Score | SampleError) -> float:
    if isinstance(answer, SampleError):
        raise answer
    return float(answer.value if isinstance(answer, Score) else answer)
