"""The Celery app, its reliability settings, and the names and messages of the queues."""

import importlib
import os
from types import ModuleType
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from kombu import Queue
from pydantic import BaseModel, ConfigDict, Field

from salon.queue import transport
from salon.queue.blobs import Reference
from salon.queue.connection import CONNECT_SECONDS, SOCKET_SECONDS
from salon.queue.refusals import patiently
from salon.redis_url import broker_url
from salon.settings import Settings

SCORE_TASK = "salon.score"
LAUNCH_TASK = "salon.launch"
TRAIN_QUEUE = "train"
MESSAGE_VERSION = 1
"""Up to which version workers of this release read a ScoreMessage."""


def score_queue(reward: str) -> str:
    """The queue from which the workers beside `reward`'s service pull."""
    return f"score.{reward}"


class Sender(BaseModel):
    """Who waits for which batch: what a worker reads of a message even if it cannot read it all."""

    model_config = ConfigDict(frozen=True)

    # What keys in Redis are made of, and those keys alone.
    batch: str = Field(pattern=r"^[0-9a-f]{32}$")
    reply_to: str = Field(pattern=r"^[0-9a-f]{16}$")
    v: int = Field(1, ge=1)  # what it takes to read the rest


class ScoreMessage(Sender):
    """One batch to score: a few hundred bytes; the batch itself is behind `reference`."""

    model_config = ConfigDict(extra="forbid")

    reward: str = Field(max_length=256)
    reference: Reference
    job: str = Field("", max_length=256)  # for logs


class _Loader(AppLoader):  # type: ignore[misc]  # celery has no types
    """Imports as Python does: Celery's own puts the working folder first meanwhile."""

    def import_from_cwd(
        self, module: str, imp: Any = None, package: str | None = None
    ) -> ModuleType:
        return importlib.import_module(module, package)


def create_app(settings: Settings) -> Celery:
    """A Celery app that loses no task and never unpickles.

    Measured facts behind the settings are in CONTRIBUTING.md, "Celery on Redis".
    """
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        os.environ.pop(name, None)  # another project's: Celery would prefer it to ours
    transport.use()
    app = Celery(
        "salon",
        broker=broker_url(settings.redis_url),
        loader=_Loader,
        include=["workers.scoring", "workers.training"],
    )
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_seconds,
            "socket_keepalive": True,
            "health_check_interval": 15,
            # One try of a send is short, and who is patient tries again: kombu alone would spend
            # 6 s on connections that are refused, and on a silent Redis any time at all.
            "max_retries": 0,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": SOCKET_SECONDS,
        },
        task_create_missing_queues=True,
        task_default_queue=TRAIN_QUEUE,
        task_queues=[Queue(TRAIN_QUEUE)],
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=True,
    )
    return app


def send_score(app: Celery, message: ScoreMessage, *, retry: bool = True) -> None:
    """Queue one batch for the workers beside its reward's service.

    Args:
        app: the Celery app to send with.
        message: the batch.
        retry: wait out a restart or a refusal of Redis, for about a minute.

    Raises:
        kombu.exceptions.OperationalError: Redis is away, or refuses.
    """
    _send(
        app,
        SCORE_TASK,
        # Without defaults: the oldest workers refuse a message that has a version.
        {"message": message.model_dump(mode="json", exclude_defaults=True)},
        score_queue(message.reward),
        # What Celery's main process says of a task it says of this id.
        task_id=f"{message.job}.{message.batch}",
        retry=retry,
    )


def served_queues(app: Celery, timeout_seconds: float = 1.0) -> set[str]:
    """The queues from which some living worker takes, as far as workers answer in time.

    Raises:
        kombu.exceptions.OperationalError: Redis is away, or refuses.
    """
    answers = app.control.inspect(timeout=timeout_seconds).active_queues() or {}
    return {queue["name"] for queues in answers.values() for queue in queues}


def served_rewards(app: Celery) -> set[str]:
    """The rewards that some living worker scores, as `served_queues` has it.

    Waits out a restart or a refusal of Redis, for about a minute.

    Raises:
        kombu.exceptions.OperationalError: as `served_queues` does, for longer.
    """
    prefix = score_queue("")
    names = patiently(lambda: served_queues(app))
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def send_launch(app: Celery, job: str) -> None:
    """Queue a job for a training worker with a free slot; waits as `send_score` does."""
    _send(app, LAUNCH_TASK, {"job": job}, TRAIN_QUEUE)


def _send(
    app: Celery,
    task: str,
    kwargs: dict[str, Any],
    queue: str,
    *,
    task_id: str | None = None,
    retry: bool = True,
) -> None:
    def send() -> None:
        # Without kombu's own way to retry: where Redis is there and refuses, it does not pause.
        app.send_task(
            task, kwargs=kwargs, queue=queue, task_id=task_id, ignore_result=True, retry=False
        )

    patiently(send) if retry else send()
