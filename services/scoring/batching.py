"""Dynamic batching: the samples of all callers, scored together.

call --samples--> queue --forms a batch--> reward.score --outcomes--> every call that had a part
                    +-- samples nobody waits for any more are dropped
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import structlog

from salon.errors import Interrupted, Overloaded, RewardFailed, ServiceUnavailable
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample
from services.scoring.call import Call, GivenUp, abandoned
from services.scoring.isolation import IsolatingScorer, cost_of
from services.scoring.limits import BatchLimits
from services.scoring.memory_limit import MemoryLimit
from services.scoring.metrics import Metrics
from services.scoring.pace import Pace
from services.scoring.submission import Batch, Part, Submission

logger = structlog.get_logger()

CHECK_SECONDS = 0.5  # how soon a call that waits for its turn notices that nobody waits for it
STUCK_SECONDS = 300.0
"""A batch that takes longer hangs, as far as anybody can tell."""


class Batcher:
    """Batches for one reward, of which at most `Reward.threads` are scored at once.

    Where that is one, a thread of the batcher's own scores them all: always the same, since OpenMP
    keeps a pool of threads for each thread that computes. Where it is more, a call that comes while
    there is room is scored by the thread that brought it.
    """

    def __init__(self, reward: Reward, limits: BatchLimits, metrics: Metrics) -> None:
        """Score with `reward`; the threads start here."""
        self._reward = reward
        self._limits = limits
        self._metrics = metrics
        self._memory = MemoryLimit(reward.name)
        self._pace = Pace()
        self._changed = threading.Condition()
        self._queue: deque[Submission] = deque()
        self._queued_cost = 0.0
        self._scoring: list[Batch] = []  # the oldest first, at most one for each thread
        self._pending = 0
        self._closed, self._why = False, ""
        self._scored = False  # a first batch, which is the warm-up
        self.broken = False
        """Whether the reward, which could score once, fails even on its own example now."""
        for _ in range(reward.threads):
            threading.Thread(target=self._run, name=f"score {reward.name}", daemon=True).start()

    @contextmanager
    def reserved(self, samples: int) -> Iterator[None]:
        """Room for the samples of one call, before any of them is decoded.

        A call alone is let in whatever its size: `Limits.max_samples` bounds that.

        Raises:
            Overloaded: too many samples are pending; `retry_after_seconds` estimates for how long.
        """
        with self._changed:
            if self._pending and self._pending + samples > self._limits.max_pending:
                raise Overloaded(
                    f"reward {self._reward.name} has {self._pending} samples pending, at most "
                    f"{self._limits.max_pending} are accepted, and this call brings {samples}: "
                    "wait, or send fewer",
                    self._estimate(),
                )
            self._pending += samples
        self._metrics.pending(self._reward.name, samples)
        try:
            yield
        finally:
            with self._changed:
                self._pending -= samples
            self._metrics.pending(self._reward.name, -samples)

    def score(self, samples: Sequence[Sample], call: Call) -> list[reward_pb2.Outcome]:
        """One outcome for each sample, in order, once they had their turn.

        Raises:
            DeadlineExceeded: nobody waits for them any more; not all were computed.
            ServiceUnavailable: `close` came first, or the reward broke; Interrupted if some of them
                had had their turn.
        """
        costs = [cost_of(self._reward, sample) for sample in samples]
        submission = Submission(samples, costs, call)
        with self._changed:
            if self._closed:
                raise _cut_off(self._why, begun=False)
            self._queue.append(submission)
            self._queued_cost += sum(submission.costs)
            batch = self._next_batch_of_caller()
            if batch is None:
                self._changed.notify()
        if batch is not None:
            self._score_batch(batch)
        while not submission.done.wait(CHECK_SECONDS):
            self._leave_if_given_up(submission)
        if submission.error:
            raise submission.error
        return submission.outcomes()

    def is_stuck(self) -> bool:
        """Whether the batch being scored takes longer than any should."""
        with self._changed:
            return bool(self._scoring) and self._scoring[0].seconds() > STUCK_SECONDS

    def close(self, why: str = "the service stops") -> None:
        """Turn away whoever still waits; a batch being scored is scored for nobody."""
        with self._changed:
            self._closed, self._why = True, why
            parts = (part for batch in self._scoring for part in batch.parts)
            for submission in {*self._queue, *(part.submission for part in parts)}:
                submission.fail(_cut_off(why, begun=submission.taken > 0))
            self._queue.clear()
            self._changed.notify_all()

    def _next_batch_of_caller(self) -> Batch | None:
        """What the thread of a call that has just come may score itself; the lock is held.

        That saves the way to another thread and back, 0.1 ms.
        """
        if self._reward.threads == 1 or self._limits.max_delay_seconds:
            return None
        return self._next_batch()

    def _run(self) -> None:
        # A batch lives in a function of its own: here it would be held while the next one forms.
        while self._score_next():
            pass

    def _score_next(self) -> bool:
        """Form a batch and score it; False once the batcher is closed."""
        batch = self._form()
        if batch is None:
            return False
        self._score_batch(batch)
        return True

    def _score_batch(self, batch: Batch) -> None:
        """Hand its outcomes, or an error, to every call that has a part in it."""
        scorer = IsolatingScorer(self._reward.name, self._reward.score, self._metrics)
        try:
            outcomes = scorer.score(batch.samples, batch.calls)
            fitting = scorer.fitting
            broken = scorer.all_raised and self._scored and not self._can_score_example(scorer)
        # Without this every call would wait without end.
        except BaseException:
            logger.exception("scoring failed", reward=self._reward.name, size=len(batch.samples))
            with self._ended(batch):
                for part in batch.parts:
                    part.submission.fail(RewardFailed("the service failed; its log says why"))
            return
        if broken:
            # Its callers are told to try again, elsewhere, rather than that their samples are bad.
            logger.error("reward fails on its own example", reward=self._reward.name)
            self.broken = True
            self.close(
                f"reward {self._reward.name} fails even on its own example ({scorer.failure}), "
                "whose traceback is in the service's log"
            )
        self._deliver(batch, outcomes, fitting)

    def _deliver(
        self, batch: Batch, outcomes: list[reward_pb2.Outcome], fitting: int | None
    ) -> None:
        remaining = iter(outcomes)
        with self._ended(batch):
            self._scored = True
            self._pace.learn(len(outcomes), batch.seconds())
            self._memory.learn(len(outcomes), fitting)
            for part in batch.parts:
                part.submission.deliver(part.start, list(islice(remaining, len(part.samples))))

    def _can_score_example(self, scorer: IsolatingScorer) -> bool:
        call = Call(lambda: None, logger)
        [outcome] = scorer.score([self._reward.example()], [call])
        return not outcome.HasField("error")

    def _estimate(self) -> float:
        """Seconds that the samples pending now may take."""
        if not self._scoring:
            return self._pace.estimate(self._pending, 0, 0.0)
        oldest = self._scoring[0]
        share = self._pending / self._reward.threads
        return self._pace.estimate(share, len(oldest.samples), oldest.seconds())

    def _form(self) -> Batch | None:
        """The next batch, as soon as there is one; None once the batcher is closed."""
        idle_since = time.monotonic()
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._closed or (self._queue and self._has_room()))
                self._await_company(idle_since)
                if (batch := self._next_batch()) is not None:
                    return batch
        return None

    def _has_room(self) -> bool:
        return len(self._scoring) < self._reward.threads

    def _next_batch(self) -> Batch | None:
        """What can be scored now, if anything; the lock is held."""
        parts = self._take() if self._has_room() else []
        if not parts:
            return None
        batch = Batch(parts)
        self._scoring.append(batch)
        if self._queue:
            self._changed.notify()
        return batch

    @contextmanager
    def _ended(self, batch: Batch) -> Iterator[None]:
        """With the lock held, while the outcomes of `batch` are handed over."""
        with self._changed:
            self._scoring.remove(batch)
            yield
            if self._queue:
                self._changed.notify()

    def _await_company(self, idle_since: float) -> None:
        if not self._queue or not self._limits.max_delay_seconds:
            return
        # Callers who got their answers a moment ago are about to send again: what came while the
        # last batch was scored must not start a small one without them.
        began = max(idle_since, self._queue[0].arrived)
        self._changed.wait_for(
            lambda: self._closed or self._queued_cost >= self._limits.max_batch,
            began + self._limits.max_delay_seconds - time.monotonic(),
        )

    def _take(self) -> list[Part]:
        parts: list[Part] = []
        samples, cost, now = 0, 0.0, time.monotonic()
        while self._queue:
            submission = self._queue[0]
            if why := submission.call.given_up():
                self._drop(submission, why)
                continue
            start = stop = submission.taken
            for extra in submission.costs[start:]:
                full = cost + extra > self._limits.max_batch or samples >= self._memory.samples
                if samples and full:
                    break
                samples, cost, stop = samples + 1, cost + extra, stop + 1
                self._metrics.queued(self._reward.name, now - submission.arrived)
            submission.taken = stop
            if stop > start:
                parts.append(Part(submission, start, submission.samples[start:stop]))
            if stop < len(submission.samples):
                # The batch is full. Its turn comes again behind the others, so that a call of a
                # thousand samples does not hold up those of one.
                self._queue.rotate(-1)
                break
            self._queue.popleft()
        self._queued_cost = self._queued_cost - cost if self._queue else 0.0
        return parts

    def _leave_if_given_up(self, submission: Submission) -> None:
        if why := submission.call.given_up():
            with self._changed:
                if submission in self._queue:
                    self._drop(submission, why)
            raise abandoned()

    def _drop(self, submission: Submission, why: GivenUp) -> None:
        self._queue.remove(submission)
        left = submission.costs[submission.taken :]
        self._queued_cost -= sum(left)
        self._metrics.dropped(self._reward.name, len(left), why)
        submission.fail(abandoned())


def _cut_off(why: str, *, begun: bool) -> ServiceUnavailable:
    if begun:
        return Interrupted(f"{why}, and the call was not finished; another replica may answer")
    return ServiceUnavailable(f"{why}, and the call was not begun; another replica may answer")
