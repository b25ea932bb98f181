"""Score images through the queue while the trainer goes on sampling."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from numpy.typing import NDArray

from salon.batches import score_requests
from salon.blobs import BlobStore
from salon.broker import ScoreMessage, score_queue, send_score
from salon.errors import DeadlineExceeded, SalonError
from salon.outcomes import Outcome, outcomes
from salon.replies import Reply, ReplyKind, ReplyStream
from salon.reward.v1 import reward_pb2
from salon.settings import Settings
from trainer.interrupt import Interrupt
from trainer.scoring import BatchAssembly, ScoredBatch

log = structlog.get_logger()

COLLECT_SECONDS = 0.25  # how often the collector looks at deadlines and interrupts
SILENCE_SECONDS = 5.0  # how often a wait is reported


@dataclass
class _Pending:
    """One request on its way: part of one batch, for one reward."""

    message: ScoreMessage
    collect: Callable[[list[Outcome]], None]
    fail: Callable[[Exception], None]
    deadline: float  # time.monotonic(): clocks of hosts differ, and are set
    heard: float = field(default_factory=time.monotonic)
    note: str = ""


class QueueScorer:
    """Scores through Celery: one blob, one message and one reply for each bounded request."""

    def __init__(
        self,
        app: Celery,
        client: redis.Redis,
        settings: Settings,
        weights: Mapping[str, float],
        on_reward_error: Literal["fail", "drop"],
        deadline_seconds: float,
        interrupt: Interrupt,
        on_waiting: Callable[[str], None],
    ) -> None:
        """Start the collector thread.

        Args:
            app: the Celery app to send with.
            client: a patient Redis connection.
            settings: limits of messages, blobs and waits.
            weights: reward name -> its weight in the total.
            on_reward_error: `fail` gives the batch's future an error as soon as one sample has
                one; `drop` marks that sample as not valid.
            deadline_seconds: how long a batch may take from submission to its last outcome.
            interrupt: when set, every pending future raises Interrupted.
            on_waiting: told every few seconds, for people, what a batch is waiting for.
        """
        self._app = app
        self._settings = settings
        self._weights = dict(weights)
        self._on_reward_error = on_reward_error
        self._deadline_seconds = deadline_seconds
        self._interrupt = interrupt
        self._on_waiting = on_waiting
        self._name = secrets.token_hex(8)
        self._blobs = BlobStore(client, settings.blob_seconds + int(deadline_seconds))
        self._replies = ReplyStream(client, self._name, settings.blob_seconds)
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Condition()  # notified when a request is answered
        self._closing = threading.Event()
        self._reported = 0.0
        self._versions: dict[str, str] = {}
        self._thread = threading.Thread(target=self._collect, name="collect-scores", daemon=True)
        self._thread.start()

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> "Future[ScoredBatch]":
        """Start scoring `images` uint8 [N, H, W, C] with every reward.

        Returns:
            A future of ScoredBatch. It raises RewardFailed when a sample has no score and the job
            says `fail`, DeadlineExceeded, Interrupted, or the SalonError a worker reported.
        """
        self._interrupt.check()
        future: Future[ScoredBatch] = Future()
        requests = [
            (reward, request)
            for reward in self._weights
            for request in score_requests(
                reward, images, prompts, metadata, self._settings.max_message_bytes
            )
        ]
        assembly = BatchAssembly(future, self._weights, len(prompts), self._on_reward_error)
        offsets: dict[str, int] = dict.fromkeys(self._weights, 0)
        parts = []
        for reward, request in requests:
            parts.append((reward, offsets[reward], request))
            offsets[reward] += len(request.samples)
        assembly.missing = len(parts)
        for reward, offset, request in parts:
            collect = assembly.part(reward, offset, len(request.samples))
            self._send(reward, request.SerializeToString(), collect, assembly)
        return future

    def close(self) -> None:
        """Stop collecting, give up what is pending, forget the reply stream."""
        self._closing.set()
        self._thread.join()
        self._give_up_all(SalonError("the scorer was closed before the batch was scored"))
        self._replies.delete()

    def _send(
        self,
        reward: str,
        payload: bytes,
        collect: Callable[[list[Outcome]], None],
        assembly: "BatchAssembly",
    ) -> None:
        with self._lock:
            while len(self._pending) >= self._settings.pending_batches:
                self._interrupt.check()
                self._lock.wait(COLLECT_SECONDS)
        message = ScoreMessage(
            batch=secrets.token_hex(16),
            reward=reward,
            reference=self._blobs.put(payload),
            reply_to=self._name,
        )
        deadline = time.monotonic() + self._deadline_seconds
        with self._lock:
            self._pending[message.batch] = _Pending(message, collect, assembly.fail, deadline)
        send_score(self._app, message)

    def _collect(self) -> None:
        while not self._closing.is_set():
            try:
                for reply in self._replies.read(COLLECT_SECONDS):
                    self._receive(reply)
                self._tend()
            except (redis.RedisError, OperationalError) as error:
                log.warning("cannot reach the queue", reason=str(error))
                self._closing.wait(COLLECT_SECONDS)
            except Exception as error:
                # Nobody else would ever complete these futures.
                log.exception("cannot collect scores")
                self._give_up_all(error)

    def _receive(self, reply: Reply) -> None:
        """Take one reply; a second answer to the same batch finds nothing to answer."""
        with self._lock:
            pending = self._pending.get(reply.batch)
            if pending is None:
                return
            pending.heard = time.monotonic()
            if reply.kind is ReplyKind.WAITING:
                pending.note = reply.body.decode()
                return
            del self._pending[reply.batch]
            self._lock.notify()
        if reply.kind is ReplyKind.FAILED:
            pending.fail(SalonError(reply.body.decode()))
        else:
            response = reward_pb2.ScoreResponse.FromString(reply.body)
            self._note_version(response.reward, response.version)
            pending.collect(outcomes(response))

    def _note_version(self, reward: str, version: str) -> None:
        """Scores of two versions are not comparable; say so, where the job's log keeps it."""
        known = self._versions.setdefault(reward, version)
        if known != version:
            log.warning("reward changed its version", reward=reward, before=known, now=version)
            self._versions[reward] = version

    def _tend(self) -> None:
        """Fail what is past its deadline, send again what was lost, say what is waited for."""
        with self._lock:
            waiting = list(self._pending.values())
        interrupted = self._interrupt.pending()
        for pending in waiting:
            if interrupted:
                self._give_up(pending, interrupted)
            elif time.monotonic() > pending.deadline:
                self._give_up(pending, DeadlineExceeded(self._overdue(pending)))
            elif time.monotonic() - pending.heard > self._settings.resend_seconds:
                log.warning("no sign of a batch: sending it again", batch=pending.message.batch)
                pending.heard = time.monotonic()
                send_score(self._app, pending.message)
        self._report(waiting)

    def _give_up_all(self, error: Exception) -> None:
        with self._lock:
            waiting = list(self._pending.values())
        for pending in waiting:
            self._give_up(pending, error)

    def _give_up(self, pending: _Pending, error: Exception) -> None:
        with self._lock:
            if self._pending.pop(pending.message.batch, None) is None:
                return
            self._lock.notify()
        self._blobs.delete(pending.message.reference)
        pending.fail(error)

    def _overdue(self, pending: _Pending) -> str:
        reward = pending.message.reward
        last = pending.note or f"no worker answered on queue {score_queue(reward)}"
        return (
            f"reward {reward} gave no score within {self._deadline_seconds:.0f} s ({last}): start "
            "its service and a scoring worker beside it, or raise reward_deadline_seconds"
        )

    def _report(self, waiting: Sequence[_Pending]) -> None:
        now = time.monotonic()
        if now - self._reported < SILENCE_SECONDS:
            return
        for pending in waiting:
            silence = now - pending.heard
            if pending.note or silence > SILENCE_SECONDS:
                self._reported = now
                queue = score_queue(pending.message.reward)
                silent = f"waiting for a worker on queue {queue}: no answer for {silence:.0f} s"
                self._on_waiting(pending.note or silent)
                return
