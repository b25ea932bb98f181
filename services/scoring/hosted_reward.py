"""One reward as a server hosts it: warmed up, batched, its scores cached."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import structlog

from salon.errors import InvalidRequest, RewardFailed, UnknownInstance
from salon.reward.v1 import reward_pb2
from salon.serving import LearnedReward, Reward, Sample
from salon.wire.frames import Received
from services.scoring.batching import Batcher
from services.scoring.cache import ScoreCache
from services.scoring.call import Call
from services.scoring.call_scorer import CallScorer
from services.scoring.decoding import DecodedPixels
from services.scoring.instance_scoring import InstanceScorer
from services.scoring.isolation import fit_reply, told
from services.scoring.limits import BatchLimits, Limits
from services.scoring.metrics import Metrics
from services.scoring.sample_reader import SampleReader

logger = structlog.get_logger()

SharedBytes = AbstractContextManager[memoryview | None]


class HostedReward(ABC):
    """A reward that answers calls."""

    reward: Reward

    @abstractmethod
    def warm_up(self) -> None:
        """Score the reward's own example, as calls will be scored from now on.

        Raises:
            RewardFailed: it cannot be scored.
        """

    @abstractmethod
    def score(
        self, received: Received, call: Call, shared: SharedBytes
    ) -> reward_pb2.ScoreResponse:
        """Score one call.

        Args:
            received: the request.
            call: who waits for the answer.
            shared: gives what the shared file of the call holds, if it has one; it is read only
                once there is room for the call.

        Raises:
            InvalidRequest: an instance of a reward that has none.
            UnknownInstance: a learned reward has none of that name.
            RewardFailed: the reply would be larger than a message may be.
            Overloaded, DeadlineExceeded, ServiceUnavailable: as `Batcher` and `CallScorer` have it.
        """

    @abstractmethod
    def is_stuck(self) -> bool:
        """Whether calls get nowhere, since one batch takes too long.

        Raises:
            RewardFailed: it cannot score any more; only a new process may help.
        """

    @abstractmethod
    def cut_off(self) -> None:
        """Turn away whoever still waits: the grace is over."""

    @abstractmethod
    def close(self) -> None:
        """Keep what must be kept; called once nobody calls any more."""


class BatchedReward(HostedReward):
    """A reward whose samples of all callers are scored together."""

    def __init__(
        self,
        reward: Reward,
        limits: Limits,
        batches: BatchLimits,
        metrics: Metrics,
        cache: ScoreCache | None,
        held: DecodedPixels,
    ) -> None:
        """Host `reward`; `cache` and `held` are all rewards' together."""
        self.reward = reward
        self._limits = limits
        self._metrics = metrics
        self._cache = cache
        self._held = held
        self._batcher = Batcher(reward, batches, metrics)

    def warm_up(self) -> None:
        """As `HostedReward.warm_up`."""
        try:
            example = self.reward.example()
        # A reward is other people's code.
        except Exception as error:
            logger.exception("example failed", reward=self.reward.name)
            raise RewardFailed(
                f"reward {self.reward.name} has no example to score: {told(error)}"
            ) from error
        [outcome] = self._batcher.score([example], Call(lambda: None, logger))
        if outcome.HasField("error"):
            raise RewardFailed(
                f"reward {self.reward.name} cannot score its own example: {outcome.error.message}"
            )

    def score(
        self, received: Received, call: Call, shared: SharedBytes
    ) -> reward_pb2.ScoreResponse:
        """As `HostedReward.score`."""
        if received.request.instance:
            raise InvalidRequest(
                f"reward {self.reward.name} does not learn: leave ScoreRequest.instance empty"
            )
        with self._batcher.reserved(len(received.samples)), shared as file:
            reader = SampleReader(self.reward, self._limits, file, call, self._held)
            scorer = CallScorer(call, reader, self._held, lambda part: self._score(part, call))
            outcomes = scorer.score(received.samples)
        response = _response(self.reward, self.reward.version, outcomes)
        return fit_reply(response, self._limits.max_message_bytes)

    def is_stuck(self) -> bool:
        """As `HostedReward.is_stuck`."""
        if self._batcher.broken:
            raise _broken(self.reward)
        return self._batcher.is_stuck()

    def cut_off(self) -> None:
        """As `HostedReward.cut_off`."""
        self._batcher.close()

    def close(self) -> None:
        """Nothing is kept."""

    def _score(self, samples: Sequence[Sample], call: Call) -> Sequence[reward_pb2.Outcome]:
        cache, name = self._cache, self.reward.name
        if cache is None:
            return self._batcher.score(samples, call)
        keys = [cache.key(name, self.reward.version, sample) for sample in samples]
        found = [cache.get(key) for key in keys]
        for outcome in found:
            self._metrics.cached(name, hit=outcome is not None)
        missing = [index for index, outcome in enumerate(found) if outcome is None]
        if missing:
            scored = self._batcher.score([samples[index] for index in missing], call)
            for index, outcome in zip(missing, scored, strict=True):
                cache.put(keys[index], outcome)
                found[index] = outcome
        return [outcome for outcome in found if outcome is not None]


class LearnedHostedReward(HostedReward):
    """A learned reward; calls are not batched together, since each instance has its own weights."""

    def __init__(
        self,
        reward: LearnedReward,
        limits: Limits,
        max_batch: float,
        metrics: Metrics,
        held: DecodedPixels,
    ) -> None:
        """Host `reward`; a call is scored in parts of at most `max_batch`."""
        self.reward = self._learned = reward
        self._limits = limits
        self._metrics = metrics
        self._held = held
        self._scorer = InstanceScorer(reward, max_batch, metrics)

    def warm_up(self) -> None:
        """As `HostedReward.warm_up`, as far as that goes without an instance."""
        self._scorer.warm_up()

    def score(
        self, received: Received, call: Call, shared: SharedBytes
    ) -> reward_pb2.ScoreResponse:
        """As `HostedReward.score`."""
        if not received.request.instance:
            raise UnknownInstance(
                f"reward {self.reward.name} scores by instance: name one in ScoreRequest.instance"
            )
        arrived = time.monotonic()
        with (
            self._counted(len(received.samples)),
            # Held open for the whole call, so that one version of it scores all samples.
            self._learned.opened(received.request.instance) as instance,
            shared as file,
        ):
            waited = time.monotonic() - arrived
            for _ in received.samples:
                self._metrics.queued(self.reward.name, waited)
            reader = SampleReader(self.reward, self._limits, file, call, self._held)
            scorer = CallScorer(
                call, reader, self._held, lambda part: self._scorer.score(instance, part, call)
            )
            outcomes = scorer.score(received.samples)
            response = _response(self.reward, instance.version, outcomes)
        return fit_reply(response, self._limits.max_message_bytes)

    def is_stuck(self) -> bool:
        """As `HostedReward.is_stuck`; a fit may take as long as its steps do."""
        if self._scorer.broken:
            raise _broken(self.reward)
        return self._scorer.is_stuck()

    def cut_off(self) -> None:
        """Nobody waits in a queue here."""

    def close(self) -> None:
        """As `HostedReward.close`."""
        self._learned.close()

    @contextmanager
    def _counted(self, samples: int) -> Iterator[None]:
        self._metrics.pending(self.reward.name, samples)
        try:
            yield
        finally:
            self._metrics.pending(self.reward.name, -samples)


def _response(
    reward: Reward, version: str, outcomes: Sequence[reward_pb2.Outcome]
) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse(
        reward=reward.name,
        version=version,
        outcomes=outcomes,
        stand_in=reward.stand_in,
        unit=reward.unit,
        direction=reward.direction,
    )


def _broken(reward: Reward) -> RewardFailed:
    return RewardFailed(
        f"reward {reward.name} cannot score any more; the service's log has the traceback"
    )
