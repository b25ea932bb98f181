"""Launch and supervise training jobs: one child process a slot, `python -m trainer run JOB`."""

import os
import secrets
import signal
import socket
import subprocess
import sys
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
from workers.celery import app, settings

log = structlog.get_logger()

# Set when this worker is asked to stop: trainers checkpoint, and their jobs go back to the queue.
_stopping = threading.Event()
POLL_SECONDS = 0.5


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
    command = [sys.executable, "-m", "trainer", "run", job, "--token", str(lease.token)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            _supervise(process)
        finally:
            if process.poll() is None:
                process.kill()
    _settle(lease, process.returncode)


def _supervise(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the trainer to end; on shutdown ask it to checkpoint, then insist."""
    while process.poll() is None:
        if not _stopping.wait(0):
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        else:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(settings.grace_seconds)
            except subprocess.TimeoutExpired:
                process.kill()


def _settle(lease: Lease, returncode: int) -> None:
    """A trainer closes or releases its own job; one that died could not, so its worker does."""
    store = JobStore(_redis())
    try:
        # A trainer told to stop before it could listen is no failed attempt.
        refund = _stopping.is_set()
        lease.release(f"its trainer died ({_describe(returncode)})", refund)
    except LeaseLost:
        log.info("trainer ended", job=lease.job, code=returncode)
    else:
        log.warning("trainer died", job=lease.job, code=returncode)
        store.add_log(lease.job, f"trainer died: {_describe(returncode)}")
    if lease.job in store.waiting() and not _stopping.is_set():
        send_launch(app, lease.job)


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


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
