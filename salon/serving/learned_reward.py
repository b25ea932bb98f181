"""What a learned reward implements: named instances that are fitted while a job runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from salon.errors import SampleError
from salon.serving.reward import Reward, Sample, Score


@dataclass(frozen=True)
class Labelled:
    """An example for a discriminator."""

    sample: Sample
    real: bool
    """Whether it is of the data that the generator should resemble."""


@dataclass(frozen=True)
class Compared:
    """An example for a preference model."""

    first: Sample
    second: Sample
    preference: float
    """Probability in [0, 1] that a judge prefers the first; 0.5 is a tie."""


Example = Labelled | Compared


@dataclass(frozen=True)
class FitOrder:
    """One fit as a caller asks for it; the fields are those of FitRequest."""

    request_id: str
    base_version: str
    examples: Iterable[Example]
    """To be read once, when it is the fit's turn: they are decoded one by one as they are read."""
    steps: int
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What a fit made."""

    version: str
    metrics: Mapping[str, float]
    """Means over the steps."""


@dataclass(frozen=True)
class Exported:
    """An instance as bytes: all that an exact resume needs."""

    version: str
    data: bytes


class Instance(ABC):
    """One instance, held open: while it is, nobody else fits it, so its version stands still."""

    version: str
    """Names the reward, the instance's fit and its weights; every fit makes a new one."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | Score | SampleError]:
        """Score a batch with these weights, as `Reward.score` does."""


class LearnedReward(Reward):
    """A reward with named instances; every method may be called by many threads at once.

    Beside what each method names, all that take an instance raise Overloaded when other calls hold
    it for too long, or when a bound on instances is reached.
    """

    max_import_bytes: int
    """Most bytes that `import_` takes."""

    @abstractmethod
    def opened(self, instance: str) -> AbstractContextManager[Instance]:
        """Hold one instance open, taking it back from disk if it was parked there.

        Raises:
            UnknownInstance: there is none of that name; fit or import it first.
        """

    @abstractmethod
    def probe(self) -> None:
        """Do a little of what scoring needs, such as the device, without any instance.

        The server asks for it before it is ready, and when an instance raised on every sample of a
        batch: what raises then is taken for broken, and the process ends.
        """

    @abstractmethod
    def fit(self, instance: str, order: FitOrder, wanted: Callable[[], bool]) -> Fitted:
        """Fit an instance, making it first if there is none and `order` builds on no version.

        A fit that raises leaves the instance as it was. One that has begun goes on to its end even
        if nobody waits for it: a repeat of its request is then answered without another fit.

        Args:
            instance: its name.
            order: what to do; answered as before if its request_id is one of the last.
            wanted: False once nobody waits for the answer; asked before the fit begins.

        Raises:
            InvalidRequest: examples, steps or hyperparameters that cannot be used.
            UnknownInstance: there is none, and `order` builds on a version of it.
            VersionMismatch: it is at another version than `order.base_version`.
            DeadlineExceeded: nobody waits any more; nothing was done.
            RewardFailed: the loss became NaN or infinite.
        """

    @abstractmethod
    def export(self, instance: str) -> Exported:
        """Everything an exact resume needs.

        Raises:
            UnknownInstance: there is none of that name.
        """

    @abstractmethod
    def import_(self, instance: str, data: bytes) -> str:
        """Make or replace an instance from what `export` gave; its version.

        Raises:
            InvalidRequest: `data` is not an export of this reward; the instance is as before.
        """

    @abstractmethod
    def delete(self, instance: str) -> None:
        """Forget an instance, if there is one of that name."""

    @abstractmethod
    def close(self) -> None:
        """Keep on disk what is only in memory; called once, when the server has drained."""

    def score(self, samples: Sequence[Sample]) -> Sequence[float | Score | SampleError]:
        """Not without an instance: the server asks `opened` instead."""
        raise TypeError(f"{self.name} scores by instance: use opened(instance).score(samples)")
