"""Launch and supervise training jobs: one attempt at a job a slot."""

import os
import secrets
import socket
import threading
from functools import lru_cache
from typing import Any

import redis
import structlog
from celery.signals import worker_ready, worker_shutting_down

from salon.broker import LAUNCH_TASK, TRAIN_QUEUE, send_launch
from salon.connection import connect
from salon.jobs import JobStore
from salon.lease import Lease, LeaseLost, acquire
from workers.attempt import Attempt
from workers.celery import app, settings

log = structlog.get_logger()

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
    processes = int(JobStore(_redis()).get(job).spec.get("num_processes", 1))
    with Attempt(job, lease.token, processes, settings.grace_seconds) as attempt:
        end = attempt.supervise(_stopping)
    _settle(lease, end)


def _settle(lease: Lease, end: str) -> None:
    """A trainer closes or releases its own job; one that died could not, so its worker does."""
    store = JobStore(_redis())
    try:
        # A trainer told to stop before it could listen is no failed attempt.
        refund = _stopping.is_set()
        lease.release(f"its trainer died ({end})", refund)
    except LeaseLost:
        log.info("trainer ended", job=lease.job, end=end)
    else:
        log.warning("trainer died", job=lease.job, end=end)
        store.add_log(lease.job, f"trainer died: {end}")
    if lease.job in store.waiting() and not _stopping.is_set():
        send_launch(app, lease.job)


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
                lost += store.waiting()
            for job in lost:
                log.warning("relaunching", job=job)
                send_launch(app, job)
        except Exception:
            # Whatever it is, one bad look must not be the last.
            log.exception("cannot look for lost jobs")
