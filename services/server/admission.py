"""Which calls are let in: none while the server starts or drains, and so many at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from salon.errors import DeadlineExceeded, Overloaded, ServiceUnavailable

RETRY_SECONDS = 1.0  # a hint to callers who are one too many


class Admission:
    """Counts the calls in flight.

    `grpc.Server` has a bound and a stop of its own, which will not do: its bound turns away health
    checks as well, so that a full server looks dead; its stop waits for health watchers, who never
    leave, and turns away the health checks that should see NOT_SERVING.
    """

    def __init__(self, max_calls: int) -> None:
        """Let in at most `max_calls` at once, and none before `open`."""
        self._changed = threading.Condition()
        self._max_calls = max_calls
        self._in_flight = 0
        self._came = False
        self._refusal = "the service is starting: its rewards are being loaded"

    def open(self) -> None:
        """Let calls in from now on."""
        with self._changed:
            self._refusal = ""

    @contextmanager
    def admitted(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Count a call until its handler is done, here, and its last byte is sent.

        The handler of a caller who left still keeps its thread, so its place must not be taken; and
        an answer that is still on its way must not be cut off by a drain.

        Raises:
            ServiceUnavailable: the server is starting or draining.
            Overloaded: as many calls as may be are in flight.
            DeadlineExceeded: the call is over already.
        """
        with self._changed:
            self._came = True
            if self._refusal:
                raise ServiceUnavailable(self._refusal)
            if self._in_flight >= self._max_calls:
                raise Overloaded(
                    f"the service holds {self._in_flight} calls, as many as it may: wait, or send "
                    "more samples in fewer calls",
                    RETRY_SECONDS,
                )
            self._in_flight += 1
        holders = 2

        def let_go() -> None:
            nonlocal holders
            with self._changed:
                holders -= 1
                if not holders:
                    self._in_flight -= 1
                    self._changed.notify_all()

        try:
            if not context.add_callback(let_go):
                let_go()
                raise DeadlineExceeded("the caller stopped waiting before the call began")
            yield
        finally:
            let_go()

    def was_idle(self) -> bool:
        """Whether no call is in flight, and none came since this was asked last."""
        with self._changed:
            idle = not self._in_flight and not self._came
            self._came = False
            return idle

    def close(self, seconds: float) -> int:
        """Let nobody in and wait up to `seconds`; the number of calls still in flight then."""
        with self._changed:
            self._refusal = "the service is draining; another replica may answer"
            self._changed.wait_for(lambda: self._in_flight == 0, seconds)
            return self._in_flight
