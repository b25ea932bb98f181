"""Which calls are in flight, and when the last of them is done."""

import threading

import grpc

from salon.errors import DeadlineExceeded, ServiceUnavailable


class Drain:
    """Counts calls in flight; once closed, lets no more in.

    `grpc.Server.stop` alone will not do: it also waits for health watchers, who never leave, and
    turns away the health checks that should see NOT_SERVING.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_flight = 0
        self._closed = False

    def admit(self, context: grpc.ServicerContext) -> None:
        """Count a call until its last byte is sent.

        Raises:
            ServiceUnavailable: the server is draining.
            DeadlineExceeded: the call is over already.
        """
        with self._changed:
            if self._closed:
                raise ServiceUnavailable("the service is draining; another replica may answer")
            self._in_flight += 1
        if not context.add_callback(self._leave):
            self._leave()
            raise DeadlineExceeded("the caller stopped waiting before the call began")

    def close(self, seconds: float) -> int:
        """Let nobody in and wait up to `seconds`; the number of calls still in flight then."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._in_flight == 0, seconds)
            return self._in_flight

    def _leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()
