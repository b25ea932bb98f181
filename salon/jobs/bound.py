"""Jobs that end with the stack that they were submitted to, as those of `salon run` do.

`salon run` may end in ways in which it can do nothing any more, by `kill -9` for one. What is left
of it would be a job that the next stack runs unasked. So the job is in a set from the moment it is
stored, and the supervisor of the stack settles what is in the set: before it stops, for whatever
reason, and, should the whole host have gone down, before it starts the first worker.
"""

import re
import secrets
import time
from pathlib import Path

import redis
import structlog

from salon.jobs.record import JobNotFound
from salon.jobs.store import JobStore
from salon.private import make_private, require_own, write_private
from salon.queue.connection import connect_once
from salon.settings import Settings

log = structlog.get_logger()

POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 5.0
REASON = "the stack that `salon run` had started for it ended"


def bound_key(settings: Settings) -> str:
    """The set of those of the stack of this state folder.

    Named after an id that lies in there, for a host may have another name tomorrow.

    Raises:
        InvalidRequest: the folder is another user's, or others may write into it.
    """
    require_own(settings.state_dir)
    return f"salon:bound:{_stack_id(settings.state_dir / 'stack.id')}"


def _stack_id(file: Path) -> str:
    found = file.read_text(errors="replace").strip() if file.exists() else ""
    if re.fullmatch(r"[0-9a-f]{32}", found):
        return found
    made = secrets.token_hex(16)
    make_private(file.parent)
    write_private(file, made)
    return made


def settle_bound_jobs(settings: Settings, wait_seconds: float = 0.0) -> None:
    """Cancel what is not over yet, and wait so long for it to be.

    A job that runs stops at its next step. One whose trainer does not stop in time stays in the set
    and keeps the wish: it is cancelled instead of started again. Without Redis that is logged.
    """
    key = bound_key(settings)
    client = connect_once(settings.redis_url, TIMEOUT_SECONDS)
    store = JobStore(client)
    deadline = time.monotonic() + wait_seconds
    try:
        for raw in client.smembers(key):
            job = raw.decode(errors="replace")
            try:
                state = _settle(store, job, deadline)
            except JobNotFound as error:
                log.warning("cannot settle a job", reason=str(error))
                state = "unknown"
            except redis.ResponseError as error:  # as where a key of it has another type
                log.warning("cannot settle a job", job=job, reason=str(error))
                continue
            if state == "requested":
                log.warning("a job does not stop", job=job)
                continue  # and is settled next time
            log.info("settled", job=job, state=state)
            client.srem(key, raw)
    except redis.RedisError as error:
        log.error("cannot settle the jobs of this stack", reason=str(error))


def _settle(store: JobStore, job: str, deadline: float) -> str:
    answer = store.cancel(job, REASON)
    while answer == "requested" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        # Asked again, not only looked at: if its trainer is gone this cancels it.
        answer = store.cancel(job, REASON)
    return answer
