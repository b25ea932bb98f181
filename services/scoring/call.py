"""One call while its samples wait and are scored."""

from collections.abc import Callable
from typing import Literal

import grpc
import structlog

from salon.errors import DeadlineExceeded

CLOCKS_SECONDS = 0.5

GivenUp = Literal["expired", "cancelled"]


class Call:
    """Whether anybody still waits for the answer, what it brought, and where it is logged."""

    def __init__(
        self,
        given_up: Callable[[], GivenUp | None],
        log: structlog.typing.FilteringBoundLogger,
        identity: str = "",
    ) -> None:
        """Take all as they are.

        Args:
            given_up: why nobody waits any more; None while somebody does.
            log: bound to what identifies the call.
            identity: names it in the log.
        """
        self.identity = identity
        self.given_up = given_up
        self.log = log
        self.reward = ""
        """Its name, for log and counts; whoever reads the request sets it, and the next."""
        self.samples = 0
        self.images = 0
        """Those read so far."""
        self.image_bytes = 0
        """Of those, as sent or referred to."""
        self.errors = 0
        """Samples that ended in one, once all are scored."""
        self.must_finish = False
        """Whether what has begun goes on to its end even if nobody waits for it."""
        self._logged: set[str] = set()

    def check_wanted(self) -> None:
        """Go on only for somebody, or with what must be finished.

        Raises:
            DeadlineExceeded: nobody waits for the answer any more.
        """
        if not self.must_finish and self.given_up():
            raise abandoned()

    def log_failure(self, reward: str, error: Exception) -> None:
        """Log a sample's failure with its traceback, the same failure once a call."""
        if repr(error) not in self._logged:
            self._logged.add(repr(error))
            self.log.error("sample failed", reward=reward, exc_info=error)


def given_up(context: grpc.ServicerContext) -> GivenUp | None:
    """Why the caller behind `context` does not wait any more; None while it does."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return "expired"
    if context.is_active():
        return None
    # The caller's own copy of a deadline ends a little earlier, and arrives as a cancellation.
    return "cancelled" if remaining is None or remaining > CLOCKS_SECONDS else "expired"


def abandoned() -> DeadlineExceeded:
    """What a call nobody waits for ends in."""
    return DeadlineExceeded("the caller stopped waiting; what was left was not computed")
