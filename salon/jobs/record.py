"""What Redis holds of a job: its record, its history, and under which keys."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from salon.errors import SalonError

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}-[0-9a-f]{6}")


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # for a person to answer its question; nothing runs it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether it is over, and stays so unless a person resumes it."""
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.WAITING)


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
    question: str = ""  # the id of what it asked last


@dataclass(frozen=True)
class Event:
    """One entry of a job's history."""

    id: str
    kind: str
    data: Mapping[str, Any]


ACTIVE_KEY: Final = "salon:jobs:active"  # a set: queued or running
WAITING_KEY: Final = "salon:jobs:waiting"  # a set: those that wait for a person
INDEX_KEY: Final = "salon:jobs"  # a sorted set: every job by submission time


def is_id(job: str) -> bool:
    """Whether that can be the id of a job."""
    return _ID.fullmatch(job) is not None


def check_id(job: object) -> str:
    """`job`, if it can be the id of one: whoever writes to Redis, or calls a command, chose it.

    An id is also the name of a run folder.

    Raises:
        JobNotFound: it cannot be.
    """
    if not isinstance(job, str) or not _ID.fullmatch(job):
        raise JobNotFound(f"no job is called {shown(job)}: `salon jobs` lists them")
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


def question_key(job: str) -> str:
    """Holds the question that the job asked last."""
    return f"{job_key(job)}:question"


def answers_key(job: str) -> str:
    """The hash of all answers that it was given, by question.

    They are kept: a trainer that goes back to a checkpoint asks again what was asked after it.
    """
    return f"{job_key(job)}:answers"


def read_record(job: str, record: Mapping[str, str]) -> Job:
    """The record of `job`, from the fields of its hash.

    Raises:
        KeyError, ValueError, TypeError, OverflowError, RecursionError: they are none.
    """
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
        question=record.get("question", ""),
    )


def _time(text: str) -> float:
    seconds = float(text)
    time.localtime(seconds)  # raises for what is no time: nan, infinities, the year 10^9
    return seconds


def read_event(identifier: str, fields: Mapping[bytes, bytes]) -> Event:
    """An entry of the history; of one that cannot be read, a warning that says so."""
    try:
        kind, data = fields[b"kind"].decode(), json.loads(fields[b"data"])
        if not isinstance(data, dict):
            raise TypeError(f"its data is a {type(data).__name__}")
    # Said in its place, so that who follows the job goes on behind it.
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        text = f"entry {identifier} of the job's history cannot be read: {error!r}"
        return Event(identifier, "warning", {"text": text})
    return Event(identifier, kind, data)


def shown(job: object) -> str:
    """What somebody called a job by, for an error."""
    return f"{job!r:.100}"
