"""The one way a running trainer stops early: read between steps, and by whatever waits."""

import threading
from enum import StrEnum

from salon.jobs.questions import Question


class Cause(StrEnum):
    """Why the trainer should stop."""

    CANCELLED = "cancelled"  # the user's wish: the job is over
    PREEMPTED = "preempted"  # the host's wish: the job goes on elsewhere
    WAITING = "waiting"  # for a person to answer the job's question: see Suspended


class Interrupted(Exception):
    """Raised inside a step; the algorithm's state is then what it was before that step."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


class Suspended(Interrupted):
    """Raised between two steps: nobody has answered yet what the last one asked."""

    def __init__(self, question: Question) -> None:
        super().__init__(Cause.WAITING)
        self.question = question


class Interrupt:
    """Set once by a signal handler or the heartbeat; checked by everyone else."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._cause = Cause.CANCELLED

    def set(self, cause: Cause) -> None:
        """Ask for a stop; the first cause stands."""
        if not self._event.is_set():
            self._cause = cause
            self._event.set()

    def pending(self) -> Interrupted | None:
        """The exception to raise, if a stop was asked for."""
        return Interrupted(self._cause) if self._event.is_set() else None

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if interrupted := self.pending():
            raise interrupted
