"""Turns to receive a message: few bytes at once, and shared fairly among connections.

All messages of all connections come through one thread of gRPC's, which copies each while it holds
Python's global lock: 16 MB take it milliseconds. So a call takes a turn before its message is asked
for. Until then only what fits into the connection's window has left the caller, and whoever floods
the service with large messages waits behind his own, not everybody behind them.

How large a message is shows only once it is there: what a connection brought last is taken for it.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from salon.errors import Overloaded

MAX_CALLS = 128
"""Those that wait for their turn or receive, each with a thread; more are refused."""
AT_ONCE_BYTES = 32 * 1024 * 1024
"""Received at once, as far as can be foreseen: while one of the largest messages is copied, another
may be on its way."""
UNKNOWN_BYTES = 1024 * 1024
"""What the first message of a connection is taken for."""
TURN_SECONDS = 0.1
"""How long a turn keeps others waiting: who sends slowly goes on without one."""
CONNECTIONS = 1024
"""Whose last message is remembered."""
RETRY_SECONDS = 1.0  # a hint to callers who are one too many


class Turns:
    """The turns of one server, by start-time fair queueing (Goyal et al. 1996) in bytes."""

    def __init__(self, at_once: int = AT_ONCE_BYTES, max_calls: int = MAX_CALLS) -> None:
        """Let so many bytes be received at once, or one message, and so many calls be here."""
        self._at_once = at_once
        self._max_calls = max_calls
        self._lock = threading.Lock()
        self._calls: list[Turn] = []  # as they came
        self._held: list[Turn] = []
        self._flows: OrderedDict[str, _Flow] = OrderedDict()  # the last used last
        self._start = 0  # of the turn that began last, in bytes of every flow that always waits

    @contextmanager
    def one(
        self, connection: str, check: Callable[[], None], cancel: Callable[[], object]
    ) -> Iterator["Turn"]:
        """Within, a call that came by `connection` may receive its message, and says its size.

        Args:
            connection: any name of it.
            check: asked now and then while it waits; may raise.
            cancel: ends the call while it receives.

        Raises:
            Overloaded: too many calls are here, and of those of this connection most of all.
        """
        with self._lock:
            turn = Turn(connection, cancel, self._flow(connection))
            self._calls.append(turn)
            if len(self._calls) > self._max_calls:
                self._turn_one_away()
            self._grant()
        try:
            while not turn.decided.wait(TURN_SECONDS):
                check()
                with self._lock:
                    self._grant()
            if turn.refused:
                raise Overloaded(
                    f"{self._max_calls} calls wait to be received, as many as may, and most of "
                    "them came by this connection: wait, or send more samples in fewer calls",
                    RETRY_SECONDS,
                )
            yield turn
        finally:
            with self._lock:
                self._end(turn)
                self._grant()

    def _flow(self, connection: str) -> "_Flow":
        flow = self._flows.pop(connection, None) or _Flow()
        self._flows[connection] = flow
        if len(self._flows) > CONNECTIONS:
            self._flows.popitem(last=False)
        return flow

    def _turn_one_away(self) -> None:
        """Of the connection with the most: the last that waits, or the first that receives."""
        [(connection, _)] = Counter(turn.connection for turn in self._calls).most_common(1)
        turns = [turn for turn in self._calls if turn.connection == connection]
        waiting = [turn for turn in turns if not turn.decided.is_set()]
        turn = waiting[-1] if waiting else turns[0]
        self._calls.remove(turn)
        if waiting:
            turn.refused = True
            turn.decided.set()
        else:
            turn.cancel()

    def _grant(self) -> None:
        """Let begin whoever may."""
        now = time.monotonic()
        self._held = [turn for turn in self._held if now - turn.began < TURN_SECONDS]
        while waiting := [turn for turn in self._calls if not turn.decided.is_set()]:
            # Of those alike the first that came.
            turn = min(waiting, key=lambda turn: max(self._start, turn.flow.finish))
            held = sum(turn.cost for turn in self._held)
            if held and held + turn.flow.size > self._at_once:
                return
            self._held.append(turn)
            turn.cost, turn.began = turn.flow.size, now
            self._start = max(self._start, turn.flow.finish)
            turn.flow.finish = self._start + turn.cost
            turn.decided.set()

    def _end(self, turn: "Turn") -> None:
        for turns in (self._calls, self._held):
            if turn in turns:
                turns.remove(turn)
        if turn.size is not None:
            turn.flow.finish += turn.size - turn.cost
            turn.flow.size = turn.size


@dataclass
class _Flow:
    """One connection: what it brought last, and how far it is with all that it brought."""

    size: int = UNKNOWN_BYTES
    finish: int = 0


@dataclass(eq=False)
class Turn:
    """The turn of one call."""

    connection: str
    cancel: Callable[[], object]
    flow: _Flow
    size: int | None = None
    """Of its message, in bytes, for whoever received it to set."""
    cost: int = 0
    began: float = 0.0
    refused: bool = False
    decided: threading.Event = field(default_factory=threading.Event)
