"""The requests of one trainer that are on their way: so many, and so many bytes, at a time."""

import threading
from collections.abc import Callable

from trainer.rewards.pending import Pending

CHECK_SECONDS = 0.25  # how soon a sender who waits notices that it should not


class Window:
    """Requests by their names; one thread adds them, another takes them out."""

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        """Be empty; a request larger than `most_bytes` is let in when no other is there."""
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._bytes = 0
        self._requests: dict[str, Pending] = {}
        self._changed = threading.Condition()

    def await_room(self, size: int, check: Callable[[], None]) -> None:
        """Wait until there is room for one more request, of `size` bytes.

        `check` is called while it waits, and ends the wait by raising.
        """
        with self._changed:
            while not self._has_room(size):
                self._changed.wait(CHECK_SECONDS)
                check()  # afterwards: what ends others' waits makes room

    def add(self, pending: Pending) -> None:
        """Have one more, for which there is room."""
        with self._changed:
            self._requests[pending.message.batch] = pending
            self._bytes += pending.size

    def get(self, batch: str) -> Pending | None:
        """The request of that name, if it is here still."""
        with self._changed:
            return self._requests.get(batch)

    def take(self, batch: str) -> Pending | None:
        """As `get`, and its room is free from then on."""
        with self._changed:
            pending = self._requests.pop(batch, None)
            if pending is not None:
                self._bytes -= pending.size
                self._changed.notify()
            return pending

    def requests(self) -> list[Pending]:
        """All that are here, the oldest first."""
        with self._changed:
            return list(self._requests.values())

    def _has_room(self, size: int) -> bool:
        if not self._requests:
            return True
        fits = self._bytes + size <= self._most_bytes
        return fits and len(self._requests) < self._most_requests
