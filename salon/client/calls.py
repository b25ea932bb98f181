"""One call to a reward service, made again while the service asks for patience."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Generic, TypeVar, cast

import grpc

from salon.client.diagnosis import explain, unreached
from salon.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    SalonError,
    ServiceUnavailable,
    from_rpc_error,
    is_of_service,
)
from salon.security import Security

GLANCE_SECONDS = 0.25
"""Longest beyond its deadline that a call looks whether it had a connection, and then why not."""
LONGEST_SECONDS = 365 * 24 * 3600
"""Of a deadline: every wait has one, and gRPC can count as far."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Peer:
    """A reward service, as its callers know it."""

    target: str
    """As errors name it."""
    channel: grpc.Channel
    security: Security
    """What the channel was made with, for an error that says why it does not connect."""


def expiry(deadline: float) -> float:
    """When so many seconds are over, as `time.monotonic()` tells time.

    Raises:
        InvalidRequest: `deadline` is no number of seconds that could be waited.
    """
    if not (isinstance(deadline, Real) and 0 < deadline <= LONGEST_SECONDS):
        raise InvalidRequest(
            f"deadline is {deadline!r}: pass seconds, more than 0 and at most {LONGEST_SECONDS} (a "
            "year), such as deadline=60"
        )
    return time.monotonic() + float(deadline)


def until_answered(attempt: Callable[[], _Response], peer: Peer, expires: float) -> _Response:
    """What `attempt` returns, which is made again while the service asks for patience.

    Args:
        attempt: makes one call.
        peer: the service that it calls.
        expires: the deadline, as `time.monotonic()` tells time.

    Raises:
        SalonError: the typed error of the status that the last attempt ended in.
    """
    while True:
        try:
            return attempt()
        except grpc.RpcError as error:
            failure = from_rpc_error(error, peer.target)
            if not is_of_service(error) and (why := _no_connection(peer, failure, expires)):
                raise ServiceUnavailable(f"reward service {peer.target}: {why}") from error
            pause = failure.retry_after_seconds if isinstance(failure, Overloaded) else None
            if pause is None or time.monotonic() + pause >= expires:
                raise failure from error
            time.sleep(pause)


def _no_connection(peer: Peer, failure: SalonError, expires: float) -> str:
    """Why there is no connection, where a look shows more than gRPC's own words for it do."""
    if isinstance(failure, DeadlineExceeded):
        # Below some 8 s the deadline comes while the channel still tries to connect.
        code = _glance(peer.channel)
        # From some addresses nothing comes back at all, not even a refusal.
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return ""
        why = unreached(peer.target, GLANCE_SECONDS)
        if why or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return why
        expires = time.monotonic() + GLANCE_SECONDS
    elif not isinstance(failure, ServiceUnavailable):
        return ""
    seconds = expires - time.monotonic()
    return explain(peer.target, peer.security, seconds) if seconds > 0 else ""


def _glance(channel: grpc.Channel) -> grpc.StatusCode:
    """What a call ends in that the channel does not repeat: UNAVAILABLE, if it found no connection.

    Not by `Channel.subscribe`: its thread prints a traceback where the channel is closed soon.
    """
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/grpc.health.v1.Health/Check"
    )
    try:
        check(b"", timeout=GLANCE_SECONDS)
    except grpc.RpcError as error:
        return cast("grpc.Call", error).code()
    except ValueError:  # another thread closed the channel
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


class PatientCall(Generic[_Request, _Response]):
    """A call and its repetitions.

    A service that has no room says when to ask again; within the deadline, that is what this does.
    The channel itself repeats calls that find no service (`salon.client.channel`).
    """

    def __init__(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        peer: Peer,
        expires: float,
    ) -> None:
        """Prepare to send `request`.

        Args:
            method: a method of a channel or stub.
            request: what to send.
            peer: the service that has the method.
            expires: the deadline, as `time.monotonic()` tells time.
        """
        self._method = method
        self._request = request
        self._peer = peer
        self._expires = expires
        self._started: grpc.Future[_Response] | None = None

    def start(self) -> None:
        """Send the request in the background, which costs 0.1 ms more of processor time."""
        self._started = self._method.future(self._request, timeout=self._remaining())

    def result(self) -> _Response:
        """Send the request, if it is not on its way, and wait for the response.

        Raises:
            SalonError: the typed error of the status that the call ended in.
        """
        return until_answered(self._attempt, self._peer, self._expires)

    def cancel(self) -> None:
        """Let the service know that nobody waits any more."""
        if self._started is not None:
            self._started.cancel()

    def _attempt(self) -> _Response:
        if self._started is None:
            return self._method(self._request, timeout=self._remaining())
        call, self._started = self._started, None
        # Not `result`, which raises something else where a call was cancelled. A call that failed
        # is also the error that it raises; its type does not say so.
        error = cast("grpc.Call", call)
        if error.code() is not grpc.StatusCode.OK:
            raise cast("grpc.RpcError", call)
        return call.result()

    def _remaining(self) -> float:
        return self._expires - time.monotonic()
