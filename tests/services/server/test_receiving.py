"""In which turn messages are received: by the order that `Turns` gives, and at a real service."""

import threading
import time

import grpc
import pytest

from salon.errors import DeadlineExceeded, Overloaded, from_rpc_error
from salon.reward.v1 import reward_pb2 as pb
from services.server.receiving import MAX_CALLS, Turns
from tests.fixtures.service import wait_until
from tests.salon.files import encoded, noise

SCORE = "/salon.reward.v1.RewardService/Score"
LARGE = 1000


class Callers:
    """Calls that take turns; each says in `began` when its turn came, and ends when it is told."""

    def __init__(self, **options):
        self.turns = Turns(**options)
        self.began = []
        self.cancelled = []
        self._threads = []
        self._ends = {}

    def come(self, name, connection, size=LARGE):
        self._ends[name] = threading.Event()

        def cancel():
            self.cancelled.append(name)

        def call():
            try:
                with self.turns.one(connection, lambda: None, cancel) as turn:
                    self.began.append(name)
                    self._ends[name].wait(30)
                    turn.size = size
            except Overloaded:
                self.began.append(f"{name} refused")

        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()
        wait_until(
            lambda: (
                any(turn.cancel is cancel for turn in self.turns._calls)
                or f"{name} refused" in self.began
            ),
            f"{name} is there",
        )

    def end(self, *names):
        """One after the other; what its end lets begin has begun then."""
        for name in names:
            known = len(self.turns._calls)
            self._ends[name].set()
            wait_until(lambda known=known: len(self.turns._calls) < known, f"{name} ended")
            time.sleep(0.02)

    def end_all(self):
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr("services.server.receiving.TURN_SECONDS", 1000.0)
    made = []

    def make(**options):
        made.append(Callers(**options))
        return made[-1]

    yield make
    for callers in made:
        callers.end_all()


def test_a_flood_of_large_messages_waits_behind_its_own(make):
    callers = make(at_once=LARGE)
    callers.come("first", "flood")  # from here on its messages are known to be large
    callers.end("first")
    for index in range(4):
        callers.come(f"large {index}", "flood")
    callers.come("small", "honest", size=10)
    callers.end("large 0")
    assert callers.began == ["first", "large 0", "small"]
    callers.end("small")
    callers.come("small again", "honest", size=10)
    callers.end("large 1")
    assert callers.began[3:] == ["large 1", "small again"]


def test_connections_share_by_bytes_and_not_by_messages(make):
    callers = make(at_once=LARGE)
    callers.come("a", "large")
    callers.come("b", "small", size=100)
    callers.end("a", "b")
    for index in range(3):
        callers.come(f"large {index}", "large")
    for index in range(12):
        callers.come(f"small {index}", "small", size=100)
    for index in range(2, 2 + 12):
        callers.end(callers.began[index])
    # Ten of the small ones are as many bytes as a large one.
    first = callers.began[2:14]
    assert [name.split()[0] for name in first].count("large") in (1, 2)


def test_small_messages_are_received_beside_one_another(make):
    callers = make(at_once=LARGE)
    for name in ("a", "b", "c"):
        callers.come(name, name, size=100)
        callers.end(name)
    for name in ("a2", "b2", "c2"):
        callers.come(name, name[0], size=100)
    assert set(callers.began[3:]) == {"a2", "b2", "c2"}


def test_who_sends_slowly_does_not_keep_others_waiting(make, monkeypatch):
    callers = make(at_once=1)
    callers.come("slow", "a")
    monkeypatch.setattr("services.server.receiving.TURN_SECONDS", 0.05)
    callers.come("other", "b")
    wait_until(lambda: "other" in callers.began, "the other has its turn")


def test_one_too_many_is_turned_away_from_the_connection_with_the_most(make):
    callers = make(at_once=1, max_calls=3)
    for name in ("flood 0", "flood 1", "flood 2"):
        callers.come(name, "flood")
    callers.come("honest", "other")
    wait_until(lambda: "flood 2 refused" in callers.began, "the last of them is turned away")
    callers.end("flood 0")
    assert callers.began == ["flood 0", "flood 2 refused", "honest"]
    assert callers.cancelled == []


def test_where_all_of_its_calls_receive_the_first_of_them_is_ended(make):
    callers = make(at_once=1000 * LARGE * LARGE, max_calls=2)
    callers.come("silent 0", "silent")
    callers.come("silent 1", "silent")
    callers.come("honest", "other")
    assert callers.cancelled == ["silent 0"]
    assert callers.began == ["silent 0", "silent 1", "honest"]


def test_a_call_that_is_given_up_leaves_its_place(make, monkeypatch):
    callers = make(at_once=1)
    callers.come("first", "a")
    monkeypatch.setattr("services.server.receiving.TURN_SECONDS", 0.5)

    def gone():
        raise DeadlineExceeded("gone")

    with pytest.raises(DeadlineExceeded), callers.turns.one("b", gone, list):
        pass
    assert len(callers.turns._calls) == 1


def request():
    image = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))
    return pb.ScoreRequest(samples=[pb.Sample(image=image)])


def test_callers_that_send_nothing_keep_nobody_from_being_scored(jpeg_service, stub):
    over = threading.Event()

    def nothing():
        over.wait(60)
        return
        yield b""

    alone = [("grpc.use_local_subchannel_pool", 1)]  # or the channels would share a connection
    with grpc.insecure_channel(jpeg_service.target, options=alone) as channel:
        silent = [channel.stream_unary(SCORE).future(nothing()) for _ in range(2 * MAX_CALLS)]
        wait_until(lambda: any(call.done() for call in silent), "as many as may be are there")
        try:
            for _ in range(3):
                assert stub(jpeg_service).Score(request(), timeout=10).outcomes[0].score < 0
        finally:
            over.set()
            for call in silent:
                call.cancel()


def test_a_call_without_a_message_is_told_so(jpeg_service):
    with (
        grpc.insecure_channel(jpeg_service.target) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.stream_unary(SCORE)(iter([]), timeout=10)
    words = "the call ended without a message: Score takes one"
    assert words in str(from_rpc_error(caught.value, jpeg_service.target))
