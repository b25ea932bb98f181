"""What a reward implements: a class with a few facts about it and one `score` method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from salon.errors import SampleError
from salon.images import Pixels
from salon.reward.v1 import reward_pb2


@dataclass(frozen=True)
class Sample:
    """One sample to score, read and checked."""

    image: Pixels
    """uint8 [H, W, C], C = 3 (RGB) or 1 (gray), read-only."""
    prompt: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """A score with what the reward says beside it."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-like values, such as a caption; they travel with the score."""


class Reward(ABC):
    """A reward model.

    A new reward is one module in `services.rewards` with one subclass: set the class attributes,
    load the model in `__init__` (it takes no arguments), write `score`. The server checks samples
    before `score` sees them, and what `score` returns before a client sees it.
    """

    name: ClassVar[str]
    """What clients ask for, snake_case."""
    version: ClassVar[str]
    """Changes whenever the same sample could score differently."""
    description: ClassVar[str]
    """What the score measures, and its unit."""
    inputs: ClassVar[Sequence[reward_pb2.Input.ValueType]] = (reward_pb2.INPUT_IMAGE,)
    """What a sample must bring; the server refuses a sample that lacks one."""
    direction: ClassVar[reward_pb2.Direction.ValueType] = reward_pb2.DIRECTION_HIGHER_IS_BETTER
    lower_bound: ClassVar[float | None] = None
    """The least score possible, if there is one."""
    upper_bound: ClassVar[float | None] = None
    """The greatest score possible, if there is one."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | Score | SampleError]:
        """Score a batch; the images may differ in size.

        Several threads call this at once. It must depend on nothing but the samples: a call may be
        repeated, and when it raises, the same samples come again one by one, so that only those
        that raise alone fail.

        Args:
            samples: at least one.

        Returns:
            One result for each sample, in order. A SampleError tells the client why this reward
            cannot judge that sample; any other exception stays in the log.
        """
