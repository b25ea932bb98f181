"""A value read from files that others may replace while the service runs."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from salon.errors import SalonError

logger = structlog.get_logger()

CHECK_SECONDS = 1.0
REMINDER_SECONDS = 60.0

_Value = TypeVar("_Value")
_Stamps = list[tuple[int, int, int] | None]


class Reloaded(Generic[_Value]):
    """Reads files again when they have changed, so that secrets rotate without a restart.

    Looks at most once every `CHECK_SECONDS`. What replaces the files may be broken, or half
    written: then the value stays as it was, since a slip of the pen should not turn every caller
    away, and the files are read again at every look until they are whole. The log says so at once
    whenever they change, and every `REMINDER_SECONDS` while they do not.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], _Value]) -> None:
        """Read for the first time; what `read` raises is raised here."""
        self._paths = paths
        self._read = read
        self._stamps = self._look()
        self._value = read()
        self._next_look = time.monotonic() + CHECK_SECONDS
        self._lock = threading.Lock()
        self._broken: _Stamps | None = None  # of the files that could not be read
        self._next_reminder = 0.0

    def value(self) -> _Value:
        """The value of the files as they are now, or were when they could last be read."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + CHECK_SECONDS
                self._reload()
            return self._value

    def _reload(self) -> None:
        stamps = self._look()
        if stamps == self._stamps:
            return
        try:
            self._value = self._read()
        except SalonError as error:
            self._complain(stamps, error)
        else:
            self._stamps, self._broken = stamps, None
            logger.info("files read again", files=[str(path) for path in self._paths])

    def _complain(self, stamps: _Stamps, error: SalonError) -> None:
        if stamps == self._broken and time.monotonic() < self._next_reminder:
            return
        self._broken, self._next_reminder = stamps, time.monotonic() + REMINDER_SECONDS
        logger.error("files changed, but what was read before stays", reason=str(error))

    def _look(self) -> _Stamps:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # Not the time of modification: a change of owner or mode counts, and nobody can set this one.
    return status.st_ctime_ns, status.st_ino, status.st_size
