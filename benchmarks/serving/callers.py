"""How a client reaches the scores, from pixels on: a reward in its own process, or Salon."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from salon.client import RewardClient
from salon.serving import Sample, Score
from services.server.reward_modules import choose_rewards

Images = NDArray[np.uint8]
Call = Callable[[Images], list[float]]
"""Scores uint8 [N, H, W, C]."""

PROMPTS = 100_000


class Caller(Protocol):
    """Says how to reach one server; picklable, so that other processes can."""

    def connect(self) -> Call:
        """A connection of its own."""


@dataclass(frozen=True)
class InProcess:
    """The reward itself, loaded where it is called: what a server can at best come near to."""

    module: str
    """As `python -m services MODULE` takes it; it must name one reward."""
    options: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> Call:
        """The loaded reward; everything is scored in one batch."""
        [choice] = choose_rewards(self.module, self.options)
        reward = choice.load()

        def score(images: Images) -> list[float]:
            samples = [
                Sample(image, prompt, {})
                for image, prompt in zip(images, new_prompts(len(images)), strict=True)
            ]
            return [_value(result) for result in reward.score(samples)]

        return score


@dataclass(frozen=True)
class Salon:
    """A service of Salon's, through its SDK."""

    target: str
    reward: str = ""
    shared_dir: Path | None = None

    def connect(self) -> Call:
        """A client."""
        client = RewardClient(self.target, shared_dir=self.shared_dir)

        def score(images: Images) -> list[float]:
            outcomes = client.score(images, new_prompts(len(images)), self.reward)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            return [outcome.score for outcome in outcomes if outcome.score is not None]

        return score


def new_prompts(count: int) -> list[str]:
    """`count` prompts that hardly ever come again: equal texts are encoded once in a batch."""
    numbers = random.sample(range(PROMPTS), count)
    return [f"a red {number:05} on a blue background" for number in numbers]


def _value(result: object) -> float:
    if isinstance(result, Score):
        return result.value
    if isinstance(result, Exception):
        raise result
    return float(result)  # type: ignore[arg-type]
