"""What people and workers ask of jobs in Redis, and let happen to them.

What the one process that runs a job may write is in lease.py.
"""

import json
import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import redis

from salon.errors import InvalidRequest, SalonError
from salon.jobs.questions import Question, to_json
from salon.jobs.record import (
    ACTIVE_KEY,
    INDEX_KEY,
    WAITING_KEY,
    Event,
    Job,
    JobNotFound,
    JobState,
    JobUnreadable,
    answers_key,
    events_key,
    is_id,
    job_key,
    lease_key,
    logs_key,
    question_key,
    read_event,
    read_record,
    shown,
)
from salon.queue.connection import check_keeps_keys

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

MAX_EVENTS = 100_000
MAX_LOG_LINES = 20_000

BY_USER: Final = "cancelled by the user"

# KEYS: record, lease, events, active set, waiting set. ARGV: job, now, reason.
# A running job whose lease has expired has no process that could notice the flag. Of several
# reasons the first is the cause.
_CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'missing' end
if state ~= 'queued' and state ~= 'running' and state ~= 'waiting' then return state end
if state == 'running' and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('HSETNX', KEYS[1], 'cancel_reason', ARGV[3])
  return 'requested'
end
local reason = redis.call('HGET', KEYS[1], 'cancel_reason') or ARGV[3]
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'reason', reason, 'finished', ARGV[2])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
local data = cjson.encode({state='cancelled', reason=reason})
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data', data)
return 'cancelled'
"""

# KEYS: record, answers, events, active set, waiting set. ARGV: job, question, answers.
# The first answer stands: a trainer may have gone on from it. A job that does not wait yet finds it
# when it would.
_ANSWER = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'missing', ''} end
local given = redis.call('HGET', KEYS[2], ARGV[2])
if given and given ~= ARGV[3] then return {'answered', given} end
if not given then
  if state ~= 'queued' and state ~= 'running' and state ~= 'waiting' then return {'over', state} end
  local asked = redis.call('HGET', KEYS[1], 'question') or ''
  if asked ~= ARGV[2] then return {'unasked', asked} end
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
if state ~= 'waiting' or redis.call('HGET', KEYS[1], 'question') ~= ARGV[2] then
  return {'kept', state}
end
redis.call('HSET', KEYS[1], 'state', 'queued', 'reason', '')
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data',
  cjson.encode({state='queued', reason='its question is answered'}))
return {'kept', 'queued'}
"""

# KEYS: record, events, active set. ARGV: job, state that it must have, new spec or '', reason.
_RESUME = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= ARGV[2] then return state or 'missing' end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempts', '0')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'spec', ARGV[3]) end
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[1], 'cancel', 'cancel_reason', 'finished', 'reason', 'interrupted')
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'data',
  cjson.encode({state='queued', reason=ARGV[4]}))
return 'queued'
"""


class JobStore:
    """Submit, look up, follow, answer, cancel and resume jobs."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._cancel = client.register_script(_CANCEL)
        self._answer = client.register_script(_ANSWER)
        self._resume = client.register_script(_RESUME)
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
        if not is_id(job):
            raise InvalidRequest(
                f"a job cannot be called {shown(name)}: its name is 1 to 63 lower case letters, "
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
                raise JobNotFound(f"no job is called {shown(job)}: `salon jobs` lists them")
            return read_record(job, {key.decode(): value.decode() for key, value in raw.items()})
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
            keys=[job_key(job), lease_key(job), events_key(job), ACTIVE_KEY, WAITING_KEY],
            args=[job, repr(time.time()), reason],
        )
        if answer == b"missing":
            raise JobNotFound(f"no job is called {shown(job)}: `salon jobs` lists them")
        return bytes(answer).decode()

    def question(self, job: str) -> Question | None:
        """What `job` waits for an answer to, or is about to; None where that is nothing.

        Raises:
            JobNotFound: no such job.
            JobUnreadable: what Redis holds is no question.
        """
        record = self.get(job)
        answered = self._client.hexists(answers_key(job), record.question)
        if record.state.final or not record.question or answered:
            return None
        return self._asked(job)

    def _asked(self, job: str) -> Question | None:
        raw = self._client.get(question_key(job))
        try:
            return None if raw is None else Question.from_values(json.loads(raw))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise JobUnreadable(
                f"the question of job {job} in Redis cannot be read ({error!r}): delete the key "
                f"{question_key(job)} and resume the job, which asks again"
            ) from error

    def answer(self, job: str, question: str, answers: Sequence[Any]) -> JobState:
        """Answer what `job` asks; if it waits for that, it is queued: the caller queues its launch.

        Answers that come before it waits are kept for it, and the same answers twice are as good as
        once.

        Args:
            job: its id.
            question: the question's id.
            answers: one for each of its items, in order.

        Returns:
            The state that the job is in now.

        Raises:
            JobNotFound: no such job.
            JobUnreadable: what Redis holds is no question.
            InvalidRequest: these are no answers to what it asks, or others were given.
        """
        self.get(job)
        asked = self._asked(job)
        if asked is not None and asked.id == question:
            given = asked.check(answers)
        else:  # of an older one these may be the answers, said once more
            given = to_json(answers, f"the answers to question {question!r:.100}")
        keys = [job_key(job), answers_key(job), events_key(job), ACTIVE_KEY, WAITING_KEY]
        args = [job, question, given]
        end, found = (bytes(part).decode() for part in self._answer(keys=keys, args=args))
        if end == "missing":
            raise JobNotFound(f"no job is called {shown(job)}: `salon jobs` lists them")
        if end == "answered":
            raise InvalidRequest(
                f"question {question} of {job} was answered otherwise before, and the first answer "
                f"stands: {found:.200}"
            )
        if end == "over":
            raise InvalidRequest(
                f"{job} is {found}, and hears no answer: `salon resume {job}` lets it ask again"
            )
        if end == "unasked":
            now = f"question {found}" if found else "nothing"
            raise InvalidRequest(f"{job} asks {now} now, and not question {question!r:.100}")
        return JobState(found)

    def resume(self, job: str, more_iterations: int = 0) -> Job:
        """Queue a job that is over again, from its last checkpoint; the caller queues its launch.

        Args:
            job: its id.
            more_iterations: so many more than its spec says.

        Raises:
            JobNotFound: no such job.
            JobUnreadable: what Redis holds is no record of one.
            InvalidRequest: it is not over, or nothing is left for it to do.
        """
        record = self.get(job)
        iterations = record.spec.get("iterations")
        if record.state is JobState.SUCCEEDED and more_iterations <= 0:
            raise InvalidRequest(
                f"{job} has succeeded, and nothing is left for it to do: "
                f"`salon resume {job} --iterations N` lets it go on for N more"
            )
        spec, reason = "", "resumed"
        if more_iterations:
            if not isinstance(iterations, int) or iterations < 1 or more_iterations < 0:
                raise InvalidRequest(
                    f"{job} cannot go on for {more_iterations} iterations more than the "
                    f"{iterations!r:.40} of its spec: both are whole numbers from 1"
                )
            spec = json.dumps({**record.spec, "iterations": iterations + more_iterations})
            reason = f"resumed, for {more_iterations} iterations more"
        found = record.state.value
        if record.state.final:
            keys = [job_key(job), events_key(job), ACTIVE_KEY]
            args = [job, record.state.value, spec, reason]
            found = bytes(self._resume(keys=keys, args=args)).decode()
            if found == JobState.QUEUED:
                return self.get(job)
        raise InvalidRequest(f"{job} is {found}: only what is over can be resumed")

    def ids(self) -> list[str]:
        """The ids of all jobs, newest first; what is listed and can be none is left out."""
        listed = (raw.decode(errors="replace") for raw in self._client.zrevrange(INDEX_KEY, 0, -1))
        return [job for job in listed if is_id(job)]

    def active(self) -> list[Job]:
        """Queued and running jobs, in the order in which they were submitted."""
        return sorted(self._active(), key=lambda job: job.submitted)

    def unfinished(self) -> list[Job]:
        """These, and those that wait for a person, in the same order."""
        # In one step, so that one that is woken meanwhile is not missed.
        listed = self._client.sunion([WAITING_KEY, ACTIVE_KEY])
        return sorted(self._readable(listed), key=lambda job: job.submitted)

    def latest(self, job: str, kind: str = "") -> Event | None:
        """The newest event of `job`, or the newest of that kind among the last hundred."""
        entries = self._client.xrevrange(events_key(job), count=100 if kind else 1)
        for identifier, fields in entries:
            event = read_event(identifier.decode(), fields)
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
            read_event(identifier.decode(), fields)
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

    def queued(self) -> list[str]:
        """Those that a training worker may take."""
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


def _line(fields: Mapping[bytes, bytes]) -> str:
    return fields.get(b"line", b"").decode(errors="replace")


def _fields(kind: str, data: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": kind, "data": json.dumps(data)}
