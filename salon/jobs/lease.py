"""The right to run a job: one holder at a time, proven by a fencing token.

Taking the lease raises the job's token by one. Every write for the job names the token it was made
under, and Redis refuses a token that is not the newest in the same step as the write, so a trainer
that slept through its lease cannot write over its successor (Kleppmann, "How to do distributed
locking", 2016: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from salon.errors import InvalidRequest, SalonError
from salon.jobs.questions import Question
from salon.jobs.record import (
    ACTIVE_KEY,
    WAITING_KEY,
    JobState,
    JobUnreadable,
    answers_key,
    events_key,
    job_key,
    lease_key,
    question_key,
)
from salon.jobs.store import MAX_EVENTS
from salon.numbers import finite

# KEYS: record, lease, events, active set.
# ARGV: job, owner, lease ms, attempts allowed, now, run folder.
# A repeated call, after an answer that was lost, finds the lease already its own.
_ACQUIRE = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
if redis.call('EXISTS', KEYS[2]) == 1 then
  if redis.call('HGET', KEYS[1], 'owner') == ARGV[2] then
    return tonumber(redis.call('GET', KEYS[2]))
  end
  return 0
end
local function close(state, reason)
  redis.call('HSET', KEYS[1], 'state', state, 'reason', reason, 'finished', ARGV[5])
  redis.call('SREM', KEYS[4], ARGV[1])
  local data = cjson.encode({state=state, reason=reason})
  redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data', data)
  return 0
end
if redis.call('HGET', KEYS[1], 'cancel') == '1' then
  local reason = redis.call('HGET', KEYS[1], 'cancel_reason')
  return close('cancelled', reason or 'cancelled by the user')
end
local attempts = tonumber(redis.call('HGET', KEYS[1], 'attempts') or '0')
if attempts >= tonumber(ARGV[4]) then
  local last = redis.call('HGET', KEYS[1], 'interrupted') or 'its trainer vanished'
  return close('failed', 'gave up after ' .. attempts .. ' attempts; the last ended thus: ' .. last)
end
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[2], 'folder', ARGV[6])
redis.call('HSETNX', KEYS[1], 'started', ARGV[5])
redis.call('HDEL', KEYS[1], 'interrupted')
redis.call('SET', KEYS[2], token, 'PX', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data',
  cjson.encode({state='running', owner=ARGV[2], attempt=attempts + 1, reason=''}))
return token
"""

# Every script below begins with the fence: the token must be the newest and the job still running.
_FENCE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1]
  or redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 'lost' end
"""

# Where the lease is still there it is prolonged: a Redis that is full does that, and sets nothing.
_PROLONG = """
if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
end
"""

# KEYS: record, lease. ARGV: token, lease ms.
_RENEW = (
    _FENCE
    + _PROLONG
    + """
if redis.call('HGET', KEYS[1], 'beat') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'beat', ARGV[1])
end
if redis.call('HGET', KEYS[1], 'cancel') == '1' then return 'cancel' end
return 'held'
"""
)

# KEYS: record, lease. ARGV: token, lease ms.
_HOLD = (
    _FENCE
    + """
if redis.call('HGET', KEYS[1], 'beat') == ARGV[1] then return 'beats' end
"""
    + _PROLONG
    + "return 'held'"
)

# KEYS: record, lease. ARGV: token.
_CHECK = (
    _FENCE
    + """
if redis.call('EXISTS', KEYS[2]) == 0 then return 'lost' end
return 'held'
"""
)

# KEYS: record, events. ARGV: token, kind, data, most events.
_EMIT = (
    _FENCE
    + """
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'kind', ARGV[2], 'data', ARGV[3])
return 'held'
"""
)

# KEYS: record, lease, events, active set. ARGV: token, job, state, reason, now.
# A repeated call, after an answer that was lost, finds its own work done. Why a job was cancelled
# is known to who did that.
_FINISH = (
    """
if redis.call('HGET', KEYS[1], 'token') == ARGV[1]
  and redis.call('HGET', KEYS[1], 'state') == ARGV[3] then return 'held' end
"""
    + _FENCE
    + """
local reason = ARGV[4]
if ARGV[3] == 'cancelled' then
  reason = redis.call('HGET', KEYS[1], 'cancel_reason') or reason
end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'reason', reason, 'finished', ARGV[5])
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[4], ARGV[2])
local data = cjson.encode({state=ARGV[3], reason=reason})
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data', data)
return 'held'
"""
)

# KEYS: record, lease, events. ARGV: token, reason, 1 to give the attempt back.
_RELEASE = (
    _FENCE
    + """
redis.call('HSET', KEYS[1], 'state', 'queued', 'interrupted', ARGV[2])
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
redis.call('DEL', KEYS[2])
local data = cjson.encode({state='queued', reason=ARGV[2]})
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data', data)
return 'held'
"""
)

# KEYS: record, question, events. ARGV: token, question's id, question, data of the event.
# Asked again after a crash it is told once.
_ASK = (
    _FENCE
    + """
if redis.call('HGET', KEYS[1], 'question') == ARGV[2]
  and redis.call('EXISTS', KEYS[2]) == 1 then return 'held' end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], 'question', ARGV[2])
redis.call('XADD', KEYS[3], '*', 'kind', 'question', 'data', ARGV[4])
return 'held'
"""
)

# KEYS: record, lease, events, active set, waiting set, answers. ARGV: token, job, reason, now.
# An attempt that ends in a question is none that failed, hence is not counted.
_SUSPEND = (
    """
if redis.call('HGET', KEYS[1], 'token') == ARGV[1]
  and redis.call('HGET', KEYS[1], 'state') == 'waiting' then return 'waiting' end
"""
    + _FENCE
    + """
local question = redis.call('HGET', KEYS[1], 'question') or ''
local state, reason = 'waiting', ARGV[3]
if redis.call('HGET', KEYS[1], 'cancel') == '1' then
  state = 'cancelled'
  reason = redis.call('HGET', KEYS[1], 'cancel_reason') or 'cancelled by the user'
  redis.call('HSET', KEYS[1], 'finished', ARGV[4])
elseif redis.call('HEXISTS', KEYS[6], question) == 1 then
  state, reason = 'queued', ''
end
redis.call('HSET', KEYS[1], 'state', state, 'reason', reason)
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
if state == 'waiting' then redis.call('SADD', KEYS[5], ARGV[2]) end
if state ~= 'queued' then redis.call('SREM', KEYS[4], ARGV[2]) end
redis.call('DEL', KEYS[2])
redis.call('XADD', KEYS[3], '*', 'kind', 'state', 'data',
  cjson.encode({state=state, reason=reason}))
return state
"""
)


class LeaseLost(SalonError):
    """Another process runs the job now, or it is over; this one must write nothing more."""


@dataclass(frozen=True)
class Lease:
    """The holder's side of one job. Every method raises LeaseLost once the lease is another's."""

    client: redis.Redis
    job: str
    token: int
    seconds: float

    def renew(self) -> bool:
        """Heartbeat. Returns whether the user asked to cancel the job."""
        return self._call(_RENEW, [lease_key(self.job)], [int(self.seconds * 1000)]) == "cancel"

    def hold(self) -> bool:
        """Renew it for a trainer that is being started; once that has renewed it, no more.

        Returns:
            Whether the trainer has, and is on its own from now on.
        """
        return self._call(_HOLD, [lease_key(self.job)], [int(self.seconds * 1000)]) == "beats"

    def check(self) -> None:
        """Look whether it is renewed, as the processes do that work beside the one that renews."""
        self._call(_CHECK, [lease_key(self.job)], [])

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Append an event to the job's history."""
        self._call(_EMIT, [events_key(self.job)], [kind, json.dumps(finite(data)), MAX_EVENTS])

    def finish(self, state: JobState, reason: str = "") -> None:
        """Close the job for good."""
        self._call(
            _FINISH,
            [lease_key(self.job), events_key(self.job), ACTIVE_KEY],
            [self.job, state.value, reason, repr(time.time())],
        )

    def release(self, reason: str, refund: bool) -> None:
        """Put the job back in the queue; `refund` when the attempt should not count."""
        self._call(
            _RELEASE,
            [lease_key(self.job), events_key(self.job)],
            [reason, int(refund)],
        )

    def ask(self, question: Question) -> None:
        """Let people see what the job asks; answers may come from now on."""
        text = _asks(self.job, str(question))
        event = {"question": question.id, "items": len(question.items), "text": text}
        self._call(
            _ASK,
            [question_key(self.job), events_key(self.job)],
            [question.id, question.to_json(), json.dumps(event)],
        )

    def answers(self, question: Question) -> list[Any] | None:
        """What was answered to it, one for each item; None while nothing was.

        Raises:
            JobUnreadable: what Redis holds is no answer to that.
        """
        raw = self.client.hget(answers_key(self.job), question.id)
        if raw is None:
            return None
        try:
            found = json.loads(raw)
            question.check(found)
        except (ValueError, RecursionError, InvalidRequest) as error:
            raise JobUnreadable(
                f"the answers in Redis cannot be used ({error}): delete field {question.id} of "
                f"{answers_key(self.job)} and resume the job, which asks again"
            ) from error
        return list(found)

    def suspend(self, asked: str) -> JobState:
        """Let the job wait, with nothing that runs it, until somebody answers what it asked last.

        Args:
            asked: that question, for people.

        Returns:
            Where it stands: waiting; or queued, as it is answered already; or cancelled.
        """
        keys = [events_key(self.job), ACTIVE_KEY, WAITING_KEY, answers_key(self.job)]
        answer = self._call(
            _SUSPEND,
            [lease_key(self.job), *keys],
            [self.job, _asks(self.job, asked), repr(time.time())],
        )
        return JobState(answer)

    def _call(self, script: str, keys: list[str], args: list[Any]) -> str:
        run = self.client.register_script(script)
        answer = bytes(run(keys=[job_key(self.job), *keys], args=[self.token, *args])).decode()
        if answer == "lost":
            raise LeaseLost(
                f"job {self.job}: token {self.token} is no longer the newest; "
                "another attempt has taken over, or the job is over"
            )
        return answer


def _asks(job: str, question: str) -> str:
    return f"asks: {question}; `salon answer {job}` answers"


def acquire(
    client: redis.Redis, job: str, owner: str, folder: str, seconds: float, attempts: int
) -> Lease | None:
    """Take the job if it is free and has attempts left.

    Closes the job instead when it was cancelled meanwhile or was started `attempts` times already.

    Args:
        client: a connection to Redis.
        job: the job's id.
        owner: who takes it; another name for every call.
        folder: the run folder, for people.
        seconds: the lease ends so long after its last renewal.
        attempts: how often the job may be started in all.

    Returns:
        None when there is nothing to run: held by another, over, or just closed.
    """
    token = client.register_script(_ACQUIRE)(
        keys=[job_key(job), lease_key(job), events_key(job), ACTIVE_KEY],
        args=[job, owner, int(seconds * 1000), attempts, repr(time.time()), folder],
    )
    return Lease(client, job, int(token), seconds) if int(token) else None
