"""Launch and supervise training jobs: one attempt at a job a slot."""

import os
import secrets
import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import redis
import structlog
from celery.signals import worker_ready, worker_shutting_down

from salon.errors import InvalidRequest, SalonError
from salon.jobs.lease import Lease, LeaseLost, acquire
from salon.jobs.record import JobNotFound, JobState, JobUnreadable
from salon.jobs.store import JobStore
from salon.queue.broker import LAUNCH_TASK, TRAIN_QUEUE, send_launch
from salon.queue.connection import connect, connect_once
from workers.attempt import Attempt
from workers.celery import app, settings

log = structlog.get_logger()

MAX_PROCESSES = 256
"""Of one job on one host: a record must not start as many as it likes."""

# Set when this worker is asked to stop: trainers checkpoint, and their jobs go back to the queue.
_stopping = threading.Event()


@lru_cache(maxsize=1)
def _redis() -> redis.Redis:
    return connect(settings.redis_url)


# Acknowledged before it runs, unlike scoring: Redis redelivers a message that is held for hours,
# and the lease, not the message, is what brings a lost job back.
@app.task(name=LAUNCH_TASK, acks_late=False)
def launch(job: str) -> None:
    """Take `job` if it is free, run its trainer, and queue it again if the trainer died."""
    if _stopping.is_set():
        return  # it stays queued, and another worker finds it
    store = JobStore(_redis())
    try:
        spec = store.get(job).spec
    except (JobNotFound, JobUnreadable) as error:  # the message is data, and so is the record
        log.error("not launched", reason=str(error))
        return
    lease = acquire(
        _redis(),
        job,
        owner=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
        folder=str(settings.runs_dir.absolute() / job),
        seconds=settings.lease_seconds,
        attempts=settings.job_attempts,
    )
    if lease is None:
        log.info("nothing to launch", job=job)
        return
    log.info("launching", job=job, token=lease.token)
    try:
        # A client that waits out a silence of Redis would see neither the trainer's end nor ours.
        impatient = connect_once(settings.redis_url, settings.lease_seconds / 3)
        held = replace(lease, client=impatient)
        with Attempt(held, _processes(spec), settings.grace_seconds) as attempt:
            end = attempt.supervise(_stopping)
    # Whatever it was, the job must say so: nobody else knows of it.
    except Exception as error:
        log.exception("not launched", job=job)
        # Not queued at once: what keeps it from starting now would use up its attempts within a
        # second. `_relaunch_lost_jobs` finds it.
        _release(lease, f"its trainer could not be started: {_words(error)}")
        return
    if _release(lease, f"its trainer died ({end})", end) and not _stopping.is_set():
        send_launch(app, job)


def _processes(spec: Mapping[str, Any]) -> int:
    wanted = spec.get("num_processes", 1)
    if not isinstance(wanted, int) or not 1 <= wanted <= MAX_PROCESSES:
        raise InvalidRequest(
            f"num_processes is {wanted!r:.40}; it is a whole number from 1 to {MAX_PROCESSES}"
        )
    return wanted


def _words(error: Exception) -> str:
    kind = "" if isinstance(error, SalonError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}"


def _release(lease: Lease, reason: str, end: str = "") -> bool:
    """A trainer closes or releases its own job; one that died could not, so its worker does.

    Returns:
        Whether the job is in the queue now.
    """
    store = JobStore(_redis())
    try:
        # A trainer told to stop before it could listen is no failed attempt.
        lease.release(reason, refund=_stopping.is_set())
    except LeaseLost:
        log.info("trainer ended", job=lease.job, end=end or reason)
    else:
        log.warning("trainer died", job=lease.job, reason=reason)
        store.add_log(lease.job, reason)
    try:
        return store.get(lease.job).state is JobState.QUEUED
    except (JobNotFound, JobUnreadable) as error:
        log.error("cannot look at the job", reason=str(error))
        return False


@worker_ready.connect
def _watch_jobs(sender: Any, **_: Any) -> None:
    if TRAIN_QUEUE in sender.app.amqp.queues.consume_from:
        threading.Thread(target=_relaunch_lost_jobs, name="relaunch", daemon=True).start()


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    _stopping.set()


def _relaunch_lost_jobs() -> None:
    """Queue every job again whose trainer vanished, or whose launch message did.

    All training workers do this; a message too many finds nothing to launch.
    """
    store = JobStore(_redis())
    while not _stopping.wait(settings.lease_seconds / 2):
        try:
            lost = store.abandoned()
            if _redis().llen(TRAIN_QUEUE) == 0:
                lost += store.queued()
            for job in lost:
                log.warning("relaunching", job=job)
                send_launch(app, job)
        except Exception:
            # Whatever it is, one bad look must not be the last.
            log.exception("cannot look for lost jobs")
