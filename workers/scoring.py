"""One scoring task: take a batch from its claim check to the reward service beside this worker."""

from functools import lru_cache
from typing import Any

import grpc
import redis
import structlog
from celery import Task

from salon.blobs import BlobMissing, BlobStore
from salon.broker import SCORE_TASK, ScoreMessage
from salon.channel import METHOD_SCORE
from salon.channel import connect as connect_service
from salon.connection import connect as connect_redis
from salon.errors import SalonError
from salon.replies import Reply, ReplyKind, ReplyStream
from workers.celery import app, settings

log = structlog.get_logger()

RETRY_SECONDS = 1


# Both are made on first use, in the child that uses them: neither survives a fork.
@lru_cache(maxsize=1)
def _redis() -> redis.Redis:
    return connect_redis(settings.redis_url)


@lru_cache(maxsize=1)
def _service() -> grpc.Channel:
    return connect_service(settings.reward_target, settings.max_message_bytes)


# What may be different next time: it is away or restarting, it hangs, it has its hands full.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class _Waiting(Exception):
    """The service cannot score now; the batch goes back to the queue."""


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
    task = ScoreMessage.model_validate(message)
    blobs = BlobStore(_redis(), settings.blob_seconds)
    replies = ReplyStream(_redis(), task.reply_to, settings.blob_seconds)
    try:
        payload = blobs.get(task.reference)
        reply = Reply(task.batch, ReplyKind.SCORED, _score(task, payload))
    except BlobMissing as error:
        log.info("batch answered already or expired", batch=task.batch, reason=str(error))
        return
    except _Waiting as waiting:
        log.warning("service unavailable", batch=task.batch, reason=str(waiting))
        replies.send(Reply(task.batch, ReplyKind.WAITING, str(waiting).encode()))
        raise self.retry(countdown=RETRY_SECONDS, exc=waiting) from None
    except SalonError as error:
        log.error("batch failed", batch=task.batch, reason=str(error))
        reply = Reply(task.batch, ReplyKind.FAILED, str(error).encode())
    replies.send(reply)
    blobs.delete(task.reference)
    _redis().delete(_attempts_key(task))


def _score(task: ScoreMessage, payload: bytes) -> bytes:
    """The serialized response to the serialized request `payload`.

    Raises:
        _Waiting: the service is away, busy or silent, and the batch has attempts left.
        SalonError: the batch will never be scored: refused, or out of attempts.
    """
    service = f"reward service {task.reward} at {settings.reward_target}"
    try:
        grpc.channel_ready_future(_service()).result(timeout=settings.service_wait_seconds)
    except grpc.FutureTimeoutError:
        raise _Waiting(f"waiting for {service}: it does not answer") from None
    attempt = _count_attempt(task, 1)
    if attempt > settings.score_attempts:
        raise SalonError(
            f"{service}: a batch took down its worker or its service, or outlasted "
            f"{settings.score_call_seconds:.0f} s, {attempt - 1} times; see their logs, then raise "
            "SALON_SCORE_TASK_SECONDS or SALON_SCORE_ATTEMPTS, or score smaller batches"
        )
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = _service().unary_unary(METHOD_SCORE)
    try:
        return call(payload, timeout=settings.score_call_seconds)
    except grpc.RpcError as error:
        code, detail = error.code(), error.details()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            _count_attempt(task, -1)  # it was not even tried
        if code in _PASSING:
            raise _Waiting(f"waiting for {service}: {code.name}: {detail}") from None
        raise SalonError(f"{service} refused a batch: {code.name}: {detail}") from None


def _attempts_key(task: ScoreMessage) -> str:
    return f"salon:attempts:{task.batch}"


def _count_attempt(task: ScoreMessage, step: int) -> int:
    pipeline = _redis().pipeline(transaction=True)
    pipeline.incrby(_attempts_key(task), step)
    pipeline.expire(_attempts_key(task), settings.blob_seconds)
    return int(pipeline.execute()[0])
