"""Jobs in Redis: the record, its states, its events.

What people and workers ask; what the one process that runs a job may write is in lease.py.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import redis

from salon.errors import InvalidRequest, SalonError
from salon.queue.connection import check_keeps_keys

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

MAX_EVENTS = 100_000
MAX_LOG_LINES = 20_000
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}-[0-9a-f]{6}")


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class JobNotFound(SalonError):
    """No job has this id."""


class JobUnreadable(SalonError):
    """Redis holds something under this id that is no record of a job."""


@dataclass(frozen=True)
class Job:
    """A job's record as Redis holds it; times are seconds since the epoch, 0 when not yet."""

    id: str
    name: str
    spec: Mapping[str, Any]
    state: JobState
    reason: str
    token: int
    attempts: int
    owner: str
    folder: str  # the run folder, as the worker that runs it sees it
    cancel_requested: bool
    submitted: float
    started: float
    finished: float


@dataclass(frozen=True)
class Event:
    """One entry of a job's history."""

    id: str
    kind: str
    data: Mapping[str, Any]


ACTIVE_KEY: Final = "salon:jobs:active"  # a set: queued or running
INDEX_KEY: Final = "salon:jobs"  # a sorted set: every job by submission time


def check_id(job: object) -> str:
    """`job`, if it can be the id of one: whoever writes to Redis, or calls a command, chose it.

    An id is also the name of a run folder.

    Raises:
        JobNotFound: it cannot be.
    """
    if not isinstance(job, str) or not _ID.fullmatch(job):
        raise JobNotFound(f"no job is called {_shown(job)}: `salon jobs` lists them")
    return job


# Every access to a job goes by these keys, and so every id that is used has been checked.
def job_key(job: str) -> str:
    """The hash that holds the record; raises JobNotFound for what can be no id, as all keys do."""
    return f"salon:job:{check_id(job)}"


def lease_key(job: str) -> str:
    """Holds the fencing token of the running trainer, and expires without its heartbeat."""
    return f"{job_key(job)}:lease"


def events_key(job: str) -> str:
    """The stream of the job's history."""
    return f"{job_key(job)}:events"


def logs_key(job: str) -> str:
    """The stream of the job's log lines."""
    return f"{job_key(job)}:logs"


BY_USER: Final = "cancelled by the user"

# KEYS: record, lease, events, active set. ARGV: job, now, reason.
# A running job whose lease has expired has no process that could notice the flag. Of several
# reasons the first is the cause.
_CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'missing' end
if state ~= 'queued' and state ~= 'running' then return state end
if state == 'running' and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('HSETNX', KEYS[1], 'cancel_reason', ARGV[3])
  return 'requested'
end
local reason = redis.call('HGET', KEYS[1], 'cancel_reason') or ARGV[3]
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'reason', reason, 'finished', ARGV[2])
redis.call('SREM', KEYS[4], ARGV[1])
local data = cjson.encode({state='cancelled', reason=reason})
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data', data)
return 'cancelled'
"""


class JobStore:
    """Submit, look up, follow and cancel jobs."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._cancel = client.register_script(_CANCEL)
        self._warned: set[bytes] = set()

    def submit(self, name: str, spec: Mapping[str, Any], bound_to: str = "") -> Job:
        """Record a new queued job; the caller then queues its launch.

        Args:
            name: its id begins with it.
            spec: the resolved spec as JSON values.
            bound_to: the key of a set in which it is from the first moment; see
                `salon.jobs.bound`.

        Raises:
            InvalidRequest: no job can have that name, or this Redis would forget it.
            SalonError: as `withdraw` does.
        """
        job = f"{name}-{secrets.token_hex(3)}"
        if not _ID.fullmatch(job):
            raise InvalidRequest(
                f"a job cannot be called {_shown(name)}: its name is 1 to 63 lower case letters, "
                "digits, dots and dashes, and begins with none of the last two"
            )
        check_keeps_keys(self._client)
        now = time.time()
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hset(
            job_key(job),
            mapping={
                "name": name,
                "spec": json.dumps(spec),
                "state": JobState.QUEUED.value,
                "submitted": repr(now),
            },
        )
        pipeline.zadd(INDEX_KEY, {job: now})
        pipeline.sadd(ACTIVE_KEY, job)
        if bound_to:
            pipeline.sadd(bound_to, job)
        pipeline.xadd(events_key(job), _fields("state", {"state": "queued", "reason": ""}))
        try:
            pipeline.execute()
            return self.get(job)
        except BaseException as error:  # it may be stored all the same, as a whole or in part
            self.withdraw(job, error)
            raise

    def withdraw(self, job: str, why: BaseException) -> None:
        """Cancel a job that could not be submitted as a whole, if any of it is there.

        A training worker launches whatever is stored and queued, with or without a message.

        Raises:
            SalonError: Redis does not let that be done either; it says how to do it later.
        """
        try:
            self.cancel(job, "it could not be queued")
        except JobNotFound:
            return
        except redis.RedisError:
            raise SalonError(
                f"{job} may be queued or not ({str(why) or type(why).__name__}), and Redis does "
                f"not let it be taken back: when it does, `salon show {job}` says which, and "
                f"`salon cancel {job}` takes it back"
            ) from why

    def get(self, job: str) -> Job:
        """The record of `job`.

        Raises:
            JobNotFound: with the way to list those that exist.
            JobUnreadable: what Redis holds is no such record.
        """
        try:
            raw = self._client.hgetall(job_key(job))
            if not raw:
                raise JobNotFound(f"no job is called {_shown(job)}: `salon jobs` lists them")
            return _read(job, {key.decode(): value.decode() for key, value in raw.items()})
        except redis.exceptions.NoPermissionError:  # says nothing of the record
            raise
        except (
            *(redis.ResponseError, RecursionError),
            *(KeyError, ValueError, TypeError, OverflowError),
        ) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise JobUnreadable(
                f"the record of job {job} in Redis cannot be read ({reason}): delete the key "
                f"{job_key(job)}, or repair it"
            ) from error

    def newest(self, limit: int = 50) -> list[Job]:
        """The newest `limit` jobs, newest first; what is listed but cannot be read is warned of."""
        return list(self._readable(self._client.zrevrange(INDEX_KEY, 0, limit - 1)))

    def cancel(self, job: str, reason: str = BY_USER) -> str:
        """Cancel at once when nothing runs it, else ask its trainer to stop at the next step.

        Args:
            job: its id.
            reason: for the record, unless it has been cancelled for another already.

        Returns:
            `cancelled`, `requested`, or the final state the job already had.

        Raises:
            JobNotFound: no such job.
        """
        answer = self._cancel(
            keys=[job_key(job), lease_key(job), events_key(job), ACTIVE_KEY],
            args=[job, repr(time.time()), reason],
        )
        if answer == b"missing":
            raise JobNotFound(f"no job is called {_shown(job)}: `salon jobs` lists them")
        return bytes(answer).decode()

    def ids(self) -> list[str]:
        """The ids of all jobs, newest first; what is listed and can be none is left out."""
        listed = (raw.decode(errors="replace") for raw in self._client.zrevrange(INDEX_KEY, 0, -1))
        return [job for job in listed if _ID.fullmatch(job)]

    def active(self) -> list[Job]:
        """Queued and running jobs, in the order in which they were submitted."""
        return sorted(self._active(), key=lambda job: job.submitted)

    def latest(self, job: str, kind: str = "") -> Event | None:
        """The newest event of `job`, or the newest of that kind among the last hundred."""
        entries = self._client.xrevrange(events_key(job), count=100 if kind else 1)
        for identifier, fields in entries:
            event = _event(identifier.decode(), fields)
            if kind in ("", event.kind):
                return event
        return None

    def follow_log(self, job: str, block_seconds: float = 1.0) -> Iterator[str]:
        """Every log line of `job` until it is over, oldest first.

        Raises:
            JobNotFound: no such job.
        """
        after = b"0-0"
        while True:
            over = self.get(job).state.final
            block = None if over else int(block_seconds * 1000)
            answer = self._client.xread({logs_key(job): after}, count=1000, block=block)
            entries = [entry for _, stream in answer or [] for entry in stream]
            for after, fields in entries:  # noqa: B007 - goes on behind the last
                yield _line(fields)
            if over and not entries:
                return

    def events(self, job: str, after: str = "0-0", block_seconds: float = 0.0) -> list[Event]:
        """Events after the one with id `after`; waits up to `block_seconds` for a first one."""
        block = int(block_seconds * 1000) or None
        answer = self._client.xread({events_key(job): after}, block=block)
        return [
            _event(identifier.decode(), fields)
            for _, entries in answer or []
            for identifier, fields in entries
        ]

    def follow(self, job: str, block_seconds: float = 1.0) -> Iterator[Event | None]:
        """Every event of `job` until it is over; None whenever `block_seconds` pass without one.

        Raises:
            JobNotFound: no such job.
        """
        after = "0-0"
        while True:
            over = self.get(job).state.final
            events = self.events(job, after, 0.0 if over else block_seconds)
            yield from events
            if events:
                after = events[-1].id
            elif over:
                return
            else:
                yield None

    def add_log(self, job: str, line: str) -> None:
        """Append one line to the job's log."""
        self._client.xadd(logs_key(job), {"line": line}, maxlen=MAX_LOG_LINES, approximate=True)

    def logs(self, job: str) -> list[str]:
        """The job's log lines, oldest first.

        Raises:
            JobNotFound: no such job.
        """
        self.get(job)
        entries = self._client.xrange(logs_key(job))
        return [_line(fields) for _, fields in entries]

    def abandoned(self) -> list[str]:
        """Running jobs whose lease has expired: their trainer, or its whole host, is gone."""
        return [
            job.id
            for job in self._active()
            if job.state is JobState.RUNNING and not self._client.exists(lease_key(job.id))
        ]

    def waiting(self) -> list[str]:
        """Queued jobs."""
        return [job.id for job in self._active() if job.state is JobState.QUEUED]

    def _active(self) -> list[Job]:
        return list(self._readable(self._client.smembers(ACTIVE_KEY)))

    def _readable(self, listed: Iterable[bytes]) -> Iterator[Job]:
        """The jobs of these ids; one that cannot be read is named, once, and hides no other."""
        for raw in listed:
            try:
                yield self.get(raw.decode(errors="replace"))
            except (JobNotFound, JobUnreadable) as error:
                if raw not in self._warned:
                    self._warned.add(raw)
                    log.warning("left out: %s", error)


def _read(job: str, record: Mapping[str, str]) -> Job:
    spec = json.loads(record["spec"])
    if not isinstance(spec, dict):
        raise TypeError(f"its spec is a {type(spec).__name__}")
    return Job(
        id=job,
        name=record["name"],
        spec=spec,
        state=JobState(record["state"]),
        reason=record.get("reason", ""),
        token=int(record.get("token", 0)),
        attempts=int(record.get("attempts", 0)),
        owner=record.get("owner", ""),
        folder=record.get("folder", ""),
        cancel_requested=record.get("cancel") == "1",
        submitted=_time(record["submitted"]),
        started=_time(record.get("started", "0")),
        finished=_time(record.get("finished", "0")),
    )


def _time(text: str) -> float:
    seconds = float(text)
    time.localtime(seconds)  # raises for what is no time: nan, infinities, the year 10^9
    return seconds


def _event(identifier: str, fields: Mapping[bytes, bytes]) -> Event:
    try:
        kind, data = fields[b"kind"].decode(), json.loads(fields[b"data"])
        if not isinstance(data, dict):
            raise TypeError(f"its data is a {type(data).__name__}")
    # Said in its place, so that who follows the job goes on behind it.
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        text = f"entry {identifier} of the job's history cannot be read: {error!r}"
        return Event(identifier, "warning", {"text": text})
    return Event(identifier, kind, data)


def _line(fields: Mapping[bytes, bytes]) -> str:
    return fields.get(b"line", b"").decode(errors="replace")


def _shown(job: object) -> str:
    return f"{job!r:.100}"


def _fields(kind: str, data: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": kind, "data": json.dumps(data)}
