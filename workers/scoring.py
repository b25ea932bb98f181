"""One scoring task: take a batch from its claim check to the service of its reward.

Where the pixels lie in a shared file, the claim check holds a request that names it, and this
worker, which passes requests on as they are, never sees them.
"""

import math
import queue
import socket
import time
from functools import cache, lru_cache
from typing import Any

import grpc
import redis
import structlog
from celery import Task
from celery.exceptions import Reject
from pydantic import ValidationError

from salon.client.channel import METHOD_SCORE
from salon.client.channel import connect as connect_service
from salon.client.diagnosis import explain
from salon.errors import (
    Overloaded,
    SalonError,
    SharedFileUnavailable,
    from_rpc_error,
    in_words,
    is_untried,
    reason_of,
)
from salon.queue.blobs import BlobMissing, BlobStore, Reference
from salon.queue.broker import MESSAGE_VERSION, SCORE_TASK, ScoreMessage, Sender
from salon.queue.connection import connect as connect_redis
from salon.queue.refusals import patiently
from salon.queue.replies import Reply, ReplyKind, ReplyStream
from salon.targets import through_proxy
from workers.celery import app, settings

log = structlog.get_logger()

RETRY_SECONDS = (1.0, 2.0, 5.0)
"""Pauses after the first, the second and every further try of a batch that has to wait."""

WORDS_SECONDS = 600
"""How long it is told what a service answered as last."""


EXPLAINED_SECONDS = 30.0
"""How long it is believed what a look at a service without a connection has shown."""

# By target, when it was looked at, and what that showed.
_explained: dict[str, tuple[float, str]] = {}


# Both are made on first use, in the child that uses them: neither survives a fork.
@lru_cache(maxsize=1)
def _redis() -> redis.Redis:
    return connect_redis(settings.redis_url)


@cache
def _service(target: str) -> grpc.Channel:
    # Not with the channel's own retries: they would hold this worker while others' batches wait.
    return connect_service(target, settings.max_message_bytes, settings.security, retries=False)


# What may be different next time: it is away or restarting, or it hangs.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_SETTLED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)


class _Waiting(Exception):
    """The batch cannot be scored here and now; it goes back to the queue."""

    def __init__(self, reason: str, hint_seconds: float | None = None) -> None:
        super().__init__(reason)
        self._hint_seconds = hint_seconds

    def pause(self, tries: int) -> float:
        """Seconds until the next try, by the service's hint if it gave one, after `tries` others.

        Less than the sender's patience: it would queue the batch a second time.
        """
        seconds = self._hint_seconds or RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
        return min(seconds, settings.resend_seconds / 2)


@app.task(
    name=SCORE_TASK,
    bind=True,
    max_retries=None,
    time_limit=settings.score_task_seconds,
)
def score(self: Task, message: dict[str, Any]) -> None:
    """Score one batch and send exactly one final reply, or put the batch back in the queue.

    Safe to run twice for one batch: scoring is idempotent, the reader takes the first final reply,
    and once a batch is answered, or its trainer has given it up, its blob is gone.
    """
    try:
        sender = Sender.model_validate(message)
    except ValidationError as error:  # whoever may write to Redis may send anything
        log.error("no message of a trainer: dropped", reason=_line(error))
        return
    batch = sender.batch
    blobs = BlobStore(_redis(), settings.blob_seconds)
    replies = ReplyStream(_redis(), sender.reply_to, settings.blob_seconds)
    reference: Reference | None = None
    try:
        _check_version(sender, self.request.retries)
        task = ScoreMessage.model_validate(message)
        reference = task.reference
        reply = Reply(batch, ReplyKind.SCORED, _score(task, blobs.get(reference)))
    except BlobMissing as error:
        log.info("batch answered already or expired", batch=batch, reason=str(error))
        return
    except _Waiting as waiting:
        log.warning("batch waits", batch=batch, reason=str(waiting))
        replies.send(Reply(batch, ReplyKind.WAITING, str(waiting).encode()))
        raise _again(self, waiting) from None
    except SharedFileUnavailable as error:
        # Nothing is wrong: it is how the sender learns to send the pixels along.
        log.debug("shared file not seen", batch=batch, reason=str(error))
        reply = Reply(batch, ReplyKind.RESEND, str(error).encode())
    except SalonError as error:
        log.error("batch failed", batch=batch, reason=str(error))
        reply = Reply(batch, ReplyKind.FAILED, str(error).encode(), reason_of(error))
    except (redis.ConnectionError, redis.TimeoutError):
        raise  # an answer would not arrive either; whoever sent the batch sends it again
    # Whatever it was, the sender would otherwise send the same again until its deadline.
    except Exception as error:
        log.exception("batch failed", batch=batch)
        words = (
            f"a scoring worker on {socket.gethostname()} failed ({_line(error)}): its log has the "
            "traceback; run trainers, workers and services of one release"
        )
        reply = Reply(batch, ReplyKind.FAILED, words.encode(errors="replace"), reason_of(error))
    replies.send(reply)
    if reference is not None:
        blobs.delete(reference)
    _redis().delete(_attempts_key(batch))


def _check_version(sender: Sender, tries: int) -> None:
    """Leave a message of a newer release to its workers, which may take from this queue, too.

    Raises:
        _Waiting: it is one.
        SalonError: it is one, and so old by now that nobody can wait for it any more.
    """
    if sender.v <= MESSAGE_VERSION:
        return
    why = (
        f"the scoring worker on {socket.gethostname()} reads messages up to version "
        f"{MESSAGE_VERSION}, and the trainer's is {sender.v}: run workers of the trainer's release"
    )
    if tries * RETRY_SECONDS[-1] > settings.blob_seconds:
        raise SalonError(why)
    raise _Waiting(why)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _again(task: Task, waiting: _Waiting) -> Exception:
    """What to raise once the batch is in the queue again."""
    pause = waiting.pause(task.request.retries)

    def send() -> Exception:
        try:
            # Without kombu's own way to retry: where Redis is there and refuses, it does not pause.
            queued: Exception = task.retry(countdown=pause, exc=waiting, throw=False, retry=False)
        except Reject as rejected:
            raise rejected.reason from None
        return queued

    return patiently(send)


def _score(task: ScoreMessage, payload: bytes) -> bytes:
    """The serialized response to the serialized request `payload`.

    Raises:
        _Waiting: the service is away, busy or silent, and the batch has attempts left.
        SharedFileUnavailable: the service cannot see the file that holds the pixels.
        SalonError: the batch will never be scored: refused, or out of attempts.
    """
    target = settings.target(task.reward)
    service = f"reward service {task.reward} at {target}{through_proxy(target)}"
    if not _is_connected(_service(target)):
        why = _explanation(target)
        why = why or f"it does not answer; {_last_words(target) or 'see its log'}"
        raise _Waiting(f"waiting for {service}: {why}")
    _explained.pop(target, None)
    attempt = _count_attempt(task, 1)
    if attempt > settings.score_attempts:
        said = _last_words(target)
        raise SalonError(
            f"{service}: a batch took down its worker or its service, or outlasted "
            f"{settings.score_call_seconds:.0f} s, {attempt - 1} times{said and f' ({said})'}; see "
            "their logs, then raise SALON_SCORE_TASK_SECONDS or SALON_SCORE_ATTEMPTS, or score "
            "smaller batches"
        )
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = _service(target).unary_unary(METHOD_SCORE)
    try:
        return call(payload, timeout=settings.score_call_seconds)
    except grpc.RpcError as error:
        if is_untried(error):
            _count_attempt(task, -1)
        failure = from_rpc_error(error, target)
        if isinstance(failure, SharedFileUnavailable):
            raise failure from None
        code, detail = error.code(), error.details()
        hint = failure.retry_after_seconds if isinstance(failure, Overloaded) else None
        if code in _PASSING and not is_untried(error):
            _keep_words(target, f"{code.name}: {detail}")
        if code in _PASSING or hint is not None:
            raise _Waiting(f"waiting for {service}: {code.name}: {detail}", hint) from None
        raise type(failure)(f"{service} refused a batch: {in_words(error)}") from None


def _is_connected(channel: grpc.Channel) -> bool:
    """Whether there is a connection: waits for one, but not for a service that refuses it.

    The channel itself goes on trying, every few seconds; the batches of a service that is away then
    cost this worker next to nothing, and those of other services do not wait behind them.
    """
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    note = states.put
    expires = time.monotonic() + settings.service_wait_seconds
    channel.subscribe(note, try_to_connect=True)
    try:
        while (state := states.get(timeout=max(0.0, expires - time.monotonic()))) not in _SETTLED:
            pass
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(note)
    return state is grpc.ChannelConnectivity.READY


def _explanation(target: str) -> str:
    """What `explain` says of it, which may take a while: not looked for anew at each try."""
    looked, why = _explained.get(target, (-math.inf, ""))
    if time.monotonic() - looked > EXPLAINED_SECONDS:
        why = explain(target, settings.security)
        _explained[target] = (time.monotonic(), why)
    return why


def _attempts_key(batch: str) -> str:
    return f"salon:attempts:{batch}"


# A service that breaks says why in one answer and is gone: whoever finds it gone repeats that.
def _words_key(target: str) -> str:
    return f"salon:service:{target}:words"


def _keep_words(target: str, words: str) -> None:
    _redis().set(_words_key(target), f"{time.time():.0f} {words}", ex=WORDS_SECONDS)


def _last_words(target: str) -> str:
    """What the service answered as last to a call that it did not finish; empty for nothing."""
    kept = (_redis().get(_words_key(target)) or b"").decode(errors="replace")
    said_at, _, words = kept.partition(" ")
    if not said_at.isdecimal():
        return ""
    return f"{max(0, round(time.time() - int(said_at)))} s ago it ended a call with: {words}"


def _count_attempt(task: ScoreMessage, step: int) -> int:
    pipeline = _redis().pipeline(transaction=True)
    key = _attempts_key(task.batch)
    pipeline.incrby(key, step)
    pipeline.expire(key, settings.blob_seconds)
    return int(pipeline.execute()[0])
