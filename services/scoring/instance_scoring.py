"""Batches of a learned reward's instances: scored in parts, and watched as those of others are."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from salon.errors import Interrupted, RewardFailed
from salon.reward.v1 import reward_pb2
from salon.serving import Instance, LearnedReward, Sample
from services.scoring.batching import STUCK_SECONDS
from services.scoring.call import Call
from services.scoring.isolation import IsolatingScorer, cost_of
from services.scoring.metrics import Metrics

logger = structlog.get_logger()


class InstanceScorer:
    """Scores with any instance of one reward; for many threads at once."""

    def __init__(self, reward: LearnedReward, max_batch: float, metrics: Metrics) -> None:
        """Score with instances of `reward`, in parts of at most `max_batch`."""
        self._reward = reward
        self._max_batch = max_batch
        self._metrics = metrics
        self._lock = threading.Lock()
        self._began: dict[object, float] = {}  # of the parts being scored
        self.broken = False
        """Whether the reward fails even without an instance, on what it could do once."""

    def warm_up(self) -> None:
        """Try what can be tried while there is no instance.

        Raises:
            RewardFailed: it fails.
        """
        if not self._is_sound():
            raise RewardFailed(
                f"reward {self._reward.name} cannot score; the service's log has the traceback"
            )

    def score(
        self, instance: Instance, samples: Sequence[Sample], call: Call
    ) -> list[reward_pb2.Outcome]:
        """One outcome for each sample, in order.

        Raises:
            DeadlineExceeded: nobody waits any more; the rest was not computed.
            Interrupted: the reward broke.
        """
        scorer = IsolatingScorer(self._reward.name, instance.score, self._metrics)
        outcomes: list[reward_pb2.Outcome] = []
        for part in self._parts(samples):
            call.check_wanted()
            with self._timed():
                outcomes += scorer.score(part, [call] * len(part))
                self.broken |= scorer.all_raised and not self._is_sound()
            if self.broken:
                # The caller is told to try again, elsewhere, rather than that its samples are bad.
                raise Interrupted(
                    f"reward {self._reward.name} cannot score any more ({scorer.failure}) and the "
                    "service ends; import the instance's last export once it is back"
                )
        return outcomes

    def is_stuck(self) -> bool:
        """Whether a part being scored takes longer than any should."""
        with self._lock:
            oldest = min(self._began.values(), default=None)
        return oldest is not None and time.monotonic() - oldest > STUCK_SECONDS

    @contextmanager
    def _timed(self) -> Iterator[None]:
        part = object()
        with self._lock:
            self._began[part] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._began[part]

    def _is_sound(self) -> bool:
        try:
            self._reward.probe()
        # A reward is other people's code: whatever it raises says the same.
        except Exception as error:
            logger.error("reward fails its probe", reward=self._reward.name, exc_info=error)
            return False
        return True

    def _parts(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """`samples` in parts of at most the largest batch."""
        start, cost = 0, 0.0
        for index, sample in enumerate(samples):
            extra = cost_of(self._reward, sample)
            if index > start and cost + extra > self._max_batch:
                yield samples[start:index]
                start, cost = index, 0.0
            cost += extra
        yield samples[start:]
