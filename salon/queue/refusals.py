"""What Redis refuses for a while: it is full, loads its data, or another server takes over.

redis-py raises such answers as errors of the caller, of many classes or, as for a full disk, of
none of their own. Here each of them is a `Refused`, and so a lost connection: what waits that out,
in redis-py and in kombu alike, then waits for these, too.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from kombu.exceptions import OperationalError
from redis.backoff import ExponentialBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # a restart of Redis with its log to replay
TOLD_SECONDS = 5.0  # at least, between two lines of the log that say what is waited for

PASSING = (
    "OOM",  # maxmemory is reached, and the policy is noeviction
    "READONLY",  # a primary that became a replica: its place is being taken
    "MISCONF",  # the last snapshot, or the log of writes, could not be written: the disk is full
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",  # min-replicas-to-write
    "BUSY",  # a script has been running for long
    "UNBLOCKED",  # a blocking read, by a primary that becomes a replica
)
"""The first words of such answers, as Redis writes them."""

_Result = TypeVar("_Result")


class Refused(redis.ConnectionError):  # type: ignore[misc]
    """Redis answered that it cannot do this now; it did not do it."""

    def __init__(self, word: str, message: str) -> None:
        """Keep whether it is full.

        Args:
            word: of `PASSING`.
            message: Redis's own.
        """
        super().__init__(f"Redis refuses for now: {word} {message.removeprefix(f'{word} ')}")
        self.is_full = word == "OOM"


def refusal(error: ResponseError) -> Refused | None:
    """`error` as a refusal, if it is one that passes."""
    # redis-py cuts the word off where it has a class for it, and keeps it beside.
    word = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    # The errors of a script are its caller's; before Redis 7 they began with words of their own.
    inner = next((known for known in PASSING if f" -{known} " in f" {error}"), word)
    if inner not in PASSING:
        return None
    return Refused(inner, str(error))


class _Typed:
    """Over a class of connections."""

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except ResponseError as error:
            if refused := refusal(error):
                raise refused from error
            raise


def typed(kind: type[Any]) -> type[Any]:
    """The class of connections `kind`, whose answers of that kind are raised as Refused."""
    return type(kind.__name__, (_Typed, kind), {})


class Patience(Retry):  # type: ignore[misc]
    """Tries again for about a minute what a connection that is lost, or a refusal, prevented.

    By the clock, not by a number of tries: one may take milliseconds or many seconds.
    """

    def __init__(self, seconds: float = PATIENCE_SECONDS, way_out: str = "") -> None:
        """Begin no further try after so long, and say `way_out` where nothing answers."""
        # Before its release 8 redis-py passed on what the system says of a new connection.
        errors = (redis.ConnectionError, redis.TimeoutError, OSError, OperationalError)
        super().__init__(ExponentialBackoff(cap=1.0, base=0.05), -1, errors)
        self._seconds = seconds
        self._ends: float | None = None  # of the call that is being made
        self._way_out = way_out
        self._told, self._told_at = "", 0.0

    def call_with_retry(
        self,
        do: Callable[[], _Result],
        fail: Callable[..., Any],
        *rest: Any,
        **options: Any,
    ) -> _Result:
        """As redis-py's own, whose further arguments depend on its version, but with an end.

        The log says what is waited for, once until that is something else.
        """
        # Within a call that tries again, a connection that connects anew has this called, too.
        outermost = self._ends is None
        ends = time.monotonic() + self._seconds if self._ends is None else self._ends
        self._ends = ends

        def failed(error: Exception, *count: int) -> None:
            now = time.monotonic()
            refused = isinstance(error, Refused)
            # Connections break in many words, and what to do about it is the same.
            what = str(error) if refused else "no connection"
            if what != self._told and now - self._told_at > TOLD_SECONDS:
                self._told, self._told_at = what, now
                said = str(error).rstrip(".")
                log.warning("waiting for Redis: %s%s", said, "" if refused else self._way_out)
            fail(error, *count)
            if now >= ends:
                raise error

        try:
            result: _Result = super().call_with_retry(do, failed, *rest, **options)
        finally:
            if outermost:
                self._ends = None
        if outermost:
            self._told = ""
        return result


def patiently(do: Callable[[], _Result]) -> _Result:
    """What `do` returns, which sends or reads by way of kombu, once Redis lets it.

    Raises:
        redis.ConnectionError, redis.TimeoutError, OperationalError: not within a minute and what
            one more try takes.
    """
    return Patience().call_with_retry(do, lambda _: None)
