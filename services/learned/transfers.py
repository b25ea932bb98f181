"""Bounds on the calls that move a whole instance: how many at once, and how long each may take."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import structlog

from salon.errors import Overloaded

logger = structlog.get_logger()

MOST_AT_ONCE = 2
"""Each holds all bytes of an instance, and a thread."""
IDLE_SECONDS = 20.0
"""How long a caller may send nothing, or read nothing."""
TRANSFER_SECONDS = 600.0
"""Longest that a transfer may take in all."""
RETRY_SECONDS = 1.0  # a hint to callers who are one too many


class TransferPlaces:
    """Places for the transfers of one server."""

    def __init__(self) -> None:
        """Have all of them free."""
        self._free = threading.Semaphore(MOST_AT_ONCE)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Within, one is taken.

        Raises:
            Overloaded: all of them are.
        """
        if not self._free.acquire(blocking=False):
            raise Overloaded(
                f"{MOST_AT_ONCE} exports and imports are under way, as many as may be: try again "
                "later",
                RETRY_SECONDS,
            )
        try:
            yield
        finally:
            self._free.release()


@contextmanager
def watched(context: grpc.ServicerContext) -> Iterator[Callable[[], None]]:
    """Within, the call of `context` is cancelled if its caller stands still, or takes too long.

    Yields:
        What to call whenever a piece came or went.
    """
    moved, ended = threading.Event(), threading.Event()

    def watch() -> None:
        expires = time.monotonic() + TRANSFER_SECONDS
        while moved.wait(min(IDLE_SECONDS, max(0.0, expires - time.monotonic()))):
            # In this order: what ends the watch is set before `moved`.
            moved.clear()
            if ended.is_set():
                return
        logger.warning("transfer cut off", idle_seconds=IDLE_SECONDS, seconds=TRANSFER_SECONDS)
        context.cancel()

    threading.Thread(target=watch, name="transfer", daemon=True).start()
    try:
        yield moved.set
    finally:
        ended.set()
        moved.set()
