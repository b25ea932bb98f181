"""What a queued job waits for, in one line for people."""

import time

from celery import Celery

from salon.cli.specs import rewards_of
from salon.jobs.record import Event, Job, JobState
from salon.jobs.store import JobStore
from salon.numbers import duration
from salon.queue.broker import TRAIN_QUEUE, create_app, score_queue, served_queues
from salon.settings import Settings


class Queue:
    """The jobs and workers that one stack's Redis knows of."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store = store
        self._app: Celery = create_app(settings)

    def served(self) -> set[str]:
        """The queues from which some living worker takes, as far as workers answer in time."""
        return served_queues(self._app)

    def waits_for(self, job: Job) -> str:
        """Who is before `job`, what the first of them waits for, and which workers are missing."""
        served = self.served()
        ahead = [other for other in self._store.active() if _is_ahead(other, job)]
        # Who runs has the slot; of the others the oldest is next.
        ahead.sort(key=lambda other: other.state is not JobState.RUNNING)
        parts = []
        if ahead:
            parts.append(self._behind(ahead, served))
        if TRAIN_QUEUE not in served:
            parts.append("no training worker answers: start one with `salon up`")
        parts += _missing_workers(job, served)
        return "; ".join(parts) or "waiting for a training worker"

    def _behind(self, ahead: list[Job], served: set[str]) -> str:
        first = ahead[0]
        others = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
        age = duration(time.time() - (first.started or first.submitted))
        event = self._store.latest(first.id)
        missing = _missing_workers(first, served)
        said = ", ".join(part for part in (_doing(event), *missing) if part)
        stuck = first.state is JobState.QUEUED or (event is not None and event.kind == "waiting")
        advice = f"; `salon cancel {first.id}` takes it out of the way" if missing and stuck else ""
        return (
            f"behind {first.id}{others}, {first.state.value} for {age}"
            f"{f' ({said})' if said else ''}{advice}"
        )


def _doing(event: Event | None) -> str:
    """What a job does, by its newest event."""
    if event is None:
        return ""
    if event.kind == "iteration":
        return f"iteration {event.data.get('iteration', '?')}/{event.data.get('iterations', '?')}"
    # Of a state, why it came to it: an attempt that failed, for one.
    return str(event.data.get("text") or event.data.get("reason") or "")


def _is_ahead(other: Job, job: Job) -> bool:
    if other.id == job.id:
        return False
    return other.state is JobState.RUNNING or other.submitted < job.submitted


def _missing_workers(job: Job, served: set[str]) -> list[str]:
    missing = [name for name in rewards_of(job.spec) if score_queue(name) not in served]
    return [f"no worker scores {', '.join(missing)}"] if missing else []
