"""`python -m trainer run JOB --token N`: one attempt at one job, as a training worker starts it.

Several processes may share the attempt, started alike but for RANK, WORLD_SIZE and the other
variables that `accelerate launch` and `torchrun` set: rank 0 keeps the lease, the record and the
run folder, the others compute.

`python -m trainer compare FOLDER... --out FILE`: one page about several finished runs.
"""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))  # the working folder, which `python -m` puts first
    from salon.own_modules import come_last

    come_last()  # before anything is imported that may lie there, too: PYTHONPATH may name it

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

from salon.extras import MissingExtra, exit_without, require

if __name__ == "__main__":
    exit_without("queue", "python -m trainer")  # what else it lacks, the job's record says

import redis
import structlog
import typer

from salon import logs
from salon.errors import SalonError
from salon.jobs.lease import Lease, LeaseLost, acquire
from salon.jobs.record import Job, JobNotFound, JobState, check_id
from salon.jobs.store import JobStore
from salon.memory import keep_freed_memory
from salon.queue.connection import check_url, connect, connect_once
from salon.settings import Settings, load_settings
from trainer.runtime.heartbeat import EXIT_LEASE_LOST, Heartbeat, LeaseWatch
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted, Suspended
from trainer.runtime.job_log import JobLog

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

EXIT_OK, EXIT_FAILED = 0, 1
START_SECONDS = 600.0
EXIT_PASSING = 76  # the next attempt may well succeed


@app.callback()
def _trainer() -> None:
    """Trainer of Salon: started by a training worker, not by hand."""


@app.command()
def run(
    job: str,
    token: Annotated[int, typer.Option(help="The fencing token of the lease taken for it.")],
) -> None:
    """Run one attempt at JOB; its state, events and logs go to Redis."""
    _check(job)
    rank = int(os.environ.get("RANK", "0"))
    logs.configure("trainer", job=job, **({"rank": rank} if "RANK" in os.environ else {}))
    keep_freed_memory()
    settings = _settings()
    try:
        require("this host's trainer", "trainer")
    except MissingExtra as error:
        typer.echo(str(error), err=True)
        _fail(job, token, settings, str(error))
        sys.exit(EXIT_FAILED)
    client = connect(settings.redis_url)
    lease = Lease(client, job, token, settings.lease_seconds)
    interrupt = Interrupt()

    def preempt(_: int, __: FrameType | None) -> None:
        interrupt.set(Cause.PREEMPTED)

    signal.signal(signal.SIGTERM, preempt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which sends SIGTERM
    # A client that waits out a silence of Redis would outwait the lease.
    impatient = connect_once(settings.redis_url, settings.lease_seconds / 3)
    own = replace(lease, client=impatient)
    heartbeat = Heartbeat(own, interrupt) if rank == 0 else LeaseWatch(own)
    try:
        heartbeat.start()
        JobLog(JobStore(impatient), job).attach()
        log.info("attempt starts", token=token)
        state, reason = _attempt(JobStore(client).get(job), lease, settings, interrupt, rank)
        heartbeat.stop()  # before the lease ends: a beat after that would find it lost
        if rank == 0:
            _close(lease, state, reason)
        code = EXIT_FAILED if state is JobState.FAILED else EXIT_OK
    except LeaseLost as error:
        log.error("lease lost", reason=str(error))
        code = EXIT_LEASE_LOST
    # Python itself may take a while to end, and what is over needs not be stopped.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


@app.command()
def take(job: str) -> None:
    """Take JOB from the queue and print the token for `run`, to start it by hand on several hosts.

    The lease is long enough to start them all; the first beat of rank 0 gives it its usual length.
    """
    _check(job)
    settings = _settings()
    lease = acquire(
        connect(settings.redis_url),
        job,
        owner=f"{socket.gethostname()}:{os.getpid()}",
        folder=str(settings.runs_dir.absolute() / job),
        seconds=START_SECONDS,
        attempts=settings.job_attempts,
    )
    if lease is None:
        sys.exit(f"{job} is over, or another trainer has it: see `salon show {job}`")
    print(lease.token)  # noqa: T201 - the answer


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
) -> None:
    """Write one page about several runs, as of one spec with several seeds."""
    from trainer.report.comparison import write_comparison  # noqa: PLC0415 - torch, seconds

    try:
        write_comparison(folders, out)
    except OSError as error:
        sys.exit(f"cannot write {out}: {error.strerror}")
    except SalonError as error:
        sys.exit(str(error))


def _check(job: str) -> None:
    try:
        check_id(job)
    except JobNotFound as error:
        sys.exit(str(error))


def _settings() -> Settings:
    try:
        settings = load_settings()
        check_url(settings.redis_url)
    except SalonError as error:
        sys.exit(str(error))
    return settings


def _fail(job: str, token: int, settings: Settings, reason: str) -> None:
    """End a job that cannot be tried here; if that cannot be noted, its worker notes an attempt."""
    client = connect_once(settings.redis_url, settings.lease_seconds / 3)
    try:
        Lease(client, job, token, settings.lease_seconds).finish(JobState.FAILED, reason)
    except (LeaseLost, redis.RedisError) as error:
        log.error("cannot end the job", reason=str(error))


def _close(lease: Lease, state: JobState, reason: str) -> None:
    if state is JobState.QUEUED:
        lease.release(reason, refund=True)
    elif state is JobState.WAITING:
        lease.suspend(reason)
    else:
        lease.finish(state, reason)


def _attempt(
    job: Job, lease: Lease, settings: Settings, interrupt: Interrupt, rank: int
) -> tuple[JobState, str]:
    """Run the job; returns the state it should now have, and why, or what it asks.

    Ends this process if another one of the attempt is gone, or Redis for longer than it waits: its
    worker counts that as an attempt.

    Raises:
        LeaseLost: nothing may be written for the job any more.
    """
    # torch takes seconds to import: the heartbeat is already beating then.
    from trainer.assembly import train  # noqa: PLC0415
    from trainer.runtime.ranks import PASSING  # noqa: PLC0415

    try:
        train(job, lease, settings, interrupt, rank)
    except Suspended as suspended:
        log.info("suspended", question=suspended.question.id)
        return JobState.WAITING, str(suspended.question)
    except Interrupted as interrupted:
        log.info("stopped", cause=interrupted.cause.value)
        if interrupted.cause is Cause.CANCELLED:
            return JobState.CANCELLED, "cancelled by the user"
        return JobState.QUEUED, "its worker was stopped"
    except LeaseLost:
        raise
    except PASSING as error:
        log.error("attempt ends", reason=f"{type(error).__name__}: {error}")
        sys.exit(EXIT_PASSING)
    except (SalonError, OSError) as error:
        reason = " ".join(str(error).split())
    except Exception as error:  # whatever it was, the record must say why
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.exception("unexpected error")
    else:
        log.info("succeeded")
        return JobState.SUCCEEDED, ""
    log.error("job failed", reason=reason)
    return JobState.FAILED, reason


if __name__ == "__main__":
    app()
