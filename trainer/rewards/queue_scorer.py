"""Score images through the queue while the trainer goes on sampling."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from numpy.typing import NDArray

from salon.errors import Overloaded, SalonError, from_reason
from salon.queue.blobs import BlobStore, Reference
from salon.queue.broker import ScoreMessage, send_score
from salon.queue.connection import connect_once
from salon.queue.replies import Reply, ReplyKind, ReplyStream
from salon.settings import Settings
from salon.wire.batches import score_frames
from salon.wire.frames import Frame
from salon.wire.images import Pixels
from salon.wire.outcomes import Outcome
from salon.wire.shared_files import SharedDirectory
from trainer.rewards.pending import SILENCE_SECONDS, Pending
from trainer.rewards.scorer import BatchAssembly, ScoredBatch
from trainer.rewards.versions import RewardVersions
from trainer.rewards.window import Window
from trainer.runtime.interrupt import Interrupt
from trainer.spec.reference import read_reference

log = structlog.get_logger()

COLLECT_SECONDS = 0.25  # how often the collector looks at deadlines and interrupts
REDIS_SECONDS = 2.0  # what Redis may take to answer the collector, which looks at nothing meanwhile
FULL_SECONDS = 1.0  # how long the collector leaves a Redis alone that has no room


class QueueScorer:
    """Scores through Celery: one blob, one message and one reply for each bounded request.

    With `settings.shared_dir` the pixels lie in a file there, and the blob is small; a service that
    does not see the file gets them through Redis.
    """

    def __init__(
        self,
        app: Celery,
        client: redis.Redis,
        settings: Settings,
        rewards: Sequence[str],
        on_reward_error: Literal["fail", "drop"],
        deadline_seconds: float,
        interrupt: Interrupt,
        on_waiting: Callable[[str], None],
        references: Mapping[str, Pixels] | None = None,
        versions: RewardVersions | None = None,
        job: str = "",
        refused: Callable[[str], Exception] | None = None,
    ) -> None:
        """Start the collector thread.

        Args:
            app: the Celery app to send with.
            client: a patient Redis connection, for those who submit.
            settings: limits of messages, blobs and waits.
            rewards: the names of those that score every batch.
            on_reward_error: `fail` gives the batch's future an error as soon as one sample has
                one; `drop` marks that sample as not valid.
            deadline_seconds: how long a request may take from when it is in the queue.
            interrupt: when set, every pending future raises Interrupted.
            on_waiting: told every few seconds, for people, what a batch is waiting for.
            references: name -> the image that this reward compares every sample with, in place of
                those that samples have of their own.
            versions: told the version of every answer; None for one of its own.
            job: whose batches these are, for the logs of workers.
            refused: the error of a reward that is a stand-in; None where it may be one.
        """
        self._app = app
        self._settings = settings
        self._rewards = tuple(rewards)
        self._on_reward_error = on_reward_error
        self._deadline_seconds = deadline_seconds
        self._interrupt = interrupt
        self._on_waiting = on_waiting
        self._references = references or {}
        self._job = job
        self._name = secrets.token_hex(8)
        expiry = settings.blob_seconds + int(deadline_seconds)
        self._blobs = BlobStore(client, expiry)
        impatient = connect_once(settings.redis_url, REDIS_SECONDS)
        self._collector_blobs = BlobStore(impatient, expiry)
        self._replies = ReplyStream(impatient, self._name, settings.blob_seconds)
        self._given_up: list[Reference] = []  # blobs to delete
        directory = settings.shared_dir
        self._shared = SharedDirectory(directory) if directory is not None else None
        self._unshared: set[str] = set()  # rewards whose service does not see our files
        self._full, self._full_until = "", 0.0  # why Redis takes no pixels, and how long it is left
        self._window = Window(settings.pending_batches, settings.pending_bytes)
        self._closing = threading.Event()
        self._reported = 0.0
        self._versions = versions or RewardVersions()
        self._refused = refused
        self._thread = threading.Thread(target=self._collect, name="collect-scores", daemon=True)
        self._thread.start()

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> "Future[ScoredBatch]":
        """Start scoring `images` uint8 [N, H, W, C] with every reward; see `RewardScorer.submit`.

        Returns:
            A future of ScoredBatch. It raises the SampleError of a sample without a score where the
            job says `fail`, DeadlineExceeded, Interrupted, or the error that the service or its
            worker ended the batch with, of the same class as there: such as UnknownInstance.

        Raises:
            InvalidRequest: one of `references` is no picture, or not there.
        """
        self._interrupt.check()
        own = None if references is None else _read(references)
        future: Future[ScoredBatch] = Future()
        assembly = BatchAssembly(
            future, self._rewards, len(images), self._on_reward_error, self._refused
        )
        for reward in self._rewards:
            offset = 0
            for frame in self._frames(reward, images, prompts, metadata, own):
                collect = assembly.part(reward, offset, frame.samples)
                self._send(reward, frame, collect, assembly)
                offset += frame.samples
        return future

    def close(self) -> None:
        """Stop collecting, give up what is pending, forget the reply stream."""
        self._closing.set()
        self._thread.join()
        self._give_up_all(SalonError("the scorer was closed before the batch was scored"))
        try:
            self._delete_blobs()
            self._replies.delete()
        except redis.RedisError as error:
            log.warning("left in the queue until it expires", reason=str(error))

    def _frames(
        self,
        reward: str,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None,
        own: Sequence[Pixels | None] | None,
    ) -> Iterator[Frame]:
        limit = self._settings.max_message_bytes
        reference = self._references.get(reward)
        return score_frames(
            reward,
            images,
            prompts,
            metadata,
            limit,
            references=own if reference is None else [reference] * len(images),
            shared=None if reward in self._unshared else self._shared,
        )

    def _send(
        self,
        reward: str,
        frame: Frame,
        collect: Callable[[list[Outcome]], None],
        assembly: "BatchAssembly",
    ) -> None:
        try:
            self._window.await_room(frame.size, self._interrupt.check)
            message = self._message(reward, self._blobs.put(frame.payload))
        except BaseException:
            frame.delete_file()
            raise
        deadline = time.monotonic() + self._deadline_seconds
        shared = frame if frame.shared_file else None
        self._window.add(Pending(message, collect, assembly.fail, deadline, frame.size, shared))
        send_score(self._app, message)

    def _message(self, reward: str, reference: Reference) -> ScoreMessage:
        return ScoreMessage(
            batch=secrets.token_hex(16),
            reward=reward,
            reference=reference,
            reply_to=self._name,
            job=self._job,
        )

    def _send_inline(self, pending: Pending, frame: Frame) -> None:
        """Send `pending` once more, its pixels through Redis, under another name.

        A second refusal of the first message, which may be under way, is then nobody's.
        """
        reward = pending.message.reward
        if reward not in self._unshared:
            log.info("images go through Redis: the service shares no directory", reward=reward)
            self._unshared.add(reward)
        try:
            message = self._message(reward, self._collector_blobs.put(frame.inline()))
        except Overloaded as error:  # `_tend` tries again, within the deadline
            log.warning("no room in Redis", reward=reward, reason=str(error))
            self._full = pending.note = str(error)
            self._full_until = time.monotonic() + (error.retry_after_seconds or FULL_SECONDS)
            return
        except SalonError as error:
            self._give_up(pending, error)
            return
        sent = replace(
            pending, message=message, shared=None, refused=False, heard=time.monotonic(), note=""
        )
        self._window.take(pending.message.batch)
        self._window.add(sent)
        frame.delete_file()
        send_score(self._app, message, retry=False)

    def _collect(self) -> None:
        while not self._closing.is_set():
            try:
                for reply in self._replies.read(COLLECT_SECONDS):
                    self._receive(reply)
                self._tend()
                self._delete_blobs()
            except (redis.RedisError, OperationalError) as error:
                log.warning("cannot reach the queue", reason=str(error))
                self._closing.wait(COLLECT_SECONDS)
            except Exception as error:
                # Nobody else would ever complete these futures.
                log.exception("cannot collect scores")
                self._give_up_all(error)
            self._end_waits()

    def _receive(self, reply: Reply) -> None:
        """Take one reply; a second answer to the same batch finds nothing to answer."""
        pending = self._window.get(reply.batch)
        if pending is None:
            return
        pending.heard = time.monotonic()
        if reply.kind is ReplyKind.WAITING:
            pending.note = reply.body.decode(errors="replace")
            return
        if reply.kind is ReplyKind.RESEND:
            # Sent again by `_tend`, which is tried again if Redis is away.
            pending.refused = True
            log.debug("shared file not seen", reason=reply.body.decode(errors="replace"))
            return
        pending.delete_file()  # before others take its room
        self._window.take(reply.batch)
        if reply.kind is ReplyKind.FAILED:
            pending.fail(from_reason(reply.error, reply.body.decode(errors="replace")))
        else:
            pending.take(reply.body, self._versions)

    def _end_waits(self) -> None:
        """Fail what is past its deadline, or all after an interrupt; this needs no Redis."""
        interrupted = self._interrupt.pending()
        for pending in self._window.requests():
            if interrupted:
                self._give_up(pending, interrupted)
            elif time.monotonic() > pending.deadline:
                self._give_up(pending, pending.overdue(self._deadline_seconds))

    def _tend(self) -> None:
        """Send again what was lost, say what is waited for."""
        waiting = self._window.requests()
        for pending in waiting:
            if pending.refused and pending.shared and time.monotonic() < self._full_until:
                pending.note = self._full
            elif pending.refused and pending.shared:
                self._send_inline(pending, pending.shared)
            elif pending.silence > self._settings.resend_seconds:
                log.warning("no sign of a batch: sending it again", batch=pending.message.batch)
                send_score(self._app, pending.message, retry=False)
                pending.heard = time.monotonic()
        self._report(waiting)

    def _give_up_all(self, error: Exception) -> None:
        for pending in self._window.requests():
            self._give_up(pending, error)

    def _give_up(self, pending: Pending, error: Exception) -> None:
        if self._window.take(pending.message.batch) is None:
            return
        pending.fail(error)  # first: nobody else ever completes that future
        pending.delete_file()
        self._given_up.append(pending.message.reference)

    def _delete_blobs(self) -> None:
        """Of requests given up; those that are left when Redis is away expire."""
        while self._given_up:
            self._collector_blobs.delete(self._given_up[-1])
            self._given_up.pop()

    def _report(self, waiting: Sequence[Pending]) -> None:
        if time.monotonic() - self._reported < SILENCE_SECONDS:
            return
        for pending in waiting:
            if note := pending.waits_for():
                self._reported = time.monotonic()
                self._on_waiting(note)
                return


def _read(references: Sequence[str | None]) -> list[Pixels | None]:
    """The pictures of a batch: each file is read once, and none is kept for the next batch."""
    pictures = {path: read_reference(path) for path in set(references) if path is not None}
    return [None if path is None else pictures[path] for path in references]
