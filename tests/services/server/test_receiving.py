"""In which turn messages are received: by the order that `Turns` gives, and at a real service."""

import socket
import struct
import threading
import time

import grpc
import pytest

from salon.errors import DeadlineExceeded, Overloaded, from_rpc_error
from salon.reward.v1 import reward_pb2 as pb
from services.server.receiving import MAX_CALLS, SLOWEST, Turns
from tests.fixtures.service import wait_until
from tests.salon.files import encoded, noise

SCORE = "/salon.reward.v1.RewardService/Score"
LARGE = 1000


class Callers:
    """Calls that take turns; each says in `began` when its turn came, and ends when it is told."""

    def __init__(self, **options):
        self.turns = Turns(**options)
        self.began = []
        self._receive = set()
        self._threads = []
        self._ends = {}

    def come(self, name, connection, size=LARGE):
        self._ends[name] = threading.Event()

        def payloads():
            self._receive.add(name)
            self.began.append(name)
            self._ends[name].wait(30)
            yield bytes(size)

        def call():
            try:
                self.turns.receive(connection, payloads(), lambda: None)
            except Overloaded as error:
                assert error.retry_after_seconds
                self.began.append(f"{name} refused")
            self._receive.discard(name)

        known = len(self.turns._calls)
        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()
        wait_until(
            lambda: len(self.turns._calls) > known or any("refused" in one for one in self.began),
            f"{name} is there",
        )
        self._settle()

    def end(self, *names):
        """One after the other; what its end lets begin has begun then."""
        for name in names:
            known = len(self.turns._calls)
            self._ends[name].set()
            wait_until(lambda known=known: len(self.turns._calls) < known, f"{name} ended")
            self._settle()

    def _settle(self):
        def is_settled():
            turns = list(self.turns._calls)
            return sum(turn.decided.is_set() for turn in turns) == len(self._receive)

        wait_until(is_settled, "those whose turn it is receive")

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


def test_where_all_of_its_calls_receive_the_first_of_them_is_ended(make):
    callers = make(at_once=1000 * LARGE * LARGE, max_calls=2)
    callers.come("silent 0", "silent")
    callers.come("silent 1", "silent")
    callers.come("honest", "other")
    wait_until(lambda: "silent 0 refused" in callers.began, "the first of them is ended")
    assert set(callers.began) == {"silent 0", "silent 1", "honest", "silent 0 refused"}


def test_a_call_that_is_given_up_leaves_its_place(make, monkeypatch):
    callers = make(at_once=1)
    callers.come("first", "a")
    monkeypatch.setattr("services.server.receiving.TURN_SECONDS", 0.5)

    def gone():
        raise DeadlineExceeded("gone")

    with pytest.raises(DeadlineExceeded, match="gone"):
        callers.turns.receive("b", iter([b""]), gone)
    assert len(callers.turns._calls) == 1


def test_a_message_that_takes_too_long_is_given_up(make, monkeypatch):
    monkeypatch.setattr("services.server.receiving.MESSAGE_SECONDS", 0.25)
    callers = make(max_message_bytes=SLOWEST // 4)
    over = threading.Event()

    def half():
        over.wait(30)
        yield b""

    with pytest.raises(DeadlineExceeded, match=r"not arrived 0\.5 s after"):
        callers.turns.receive("slow", half(), lambda: None)
    over.set()
    assert not callers.turns._calls


def frame(kind, flags, payload=b""):
    """A frame of HTTP/2 (RFC 9113, section 4.1); all but settings belong to the one call."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", 0 if kind == 4 else 1) + payload


def headers():
    """Of a call to Score, each as a literal (RFC 7541, section 6.2.2)."""
    fields = {":method": "POST", ":scheme": "http", ":path": SCORE, ":authority": "x"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    texts = [text.encode() for field in fields.items() for text in field]
    words = [bytes([len(text)]) + text for text in texts]
    return b"".join(
        b"\0" + name + value for name, value in zip(words[::2], words[1::2], strict=True)
    )


def request():
    image = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))
    return pb.ScoreRequest(samples=[pb.Sample(image=image)])


@pytest.fixture
def counting(start_service):
    return start_service("jpeg", "--metrics-port", "0", "--max-message-bytes", "100000")


def count(service, code):
    try:
        return service.metric(f'request_total{{code="{code}",reward=""}}')
    except ValueError:  # there was none
        return 0


def test_callers_that_send_nothing_keep_nobody_from_being_scored(counting, stub):
    over = threading.Event()

    def nothing():
        over.wait(60)
        return
        yield b""

    alone = [("grpc.use_local_subchannel_pool", 1)]  # or the channels would share a connection
    with grpc.insecure_channel(counting.target, options=alone) as channel:
        silent = [channel.stream_unary(SCORE).future(nothing()) for _ in range(2 * MAX_CALLS)]
        try:
            wait_until(lambda: sum(call.done() for call in silent) >= MAX_CALLS, "half are ended")
            for _ in range(3):
                assert stub(counting).Score(request(), timeout=10).outcomes[0].score < 0
            wait_until(lambda: count(counting, "RESOURCE_EXHAUSTED") > MAX_CALLS, "one more is")
            assert not count(counting, "DEADLINE_EXCEEDED")
            for call in silent:
                if call.done():
                    error = from_rpc_error(call, counting.target)
                    assert isinstance(error, Overloaded)
                    assert error.retry_after_seconds
        finally:
            over.set()
            for call in silent:
                call.cancel()


def test_who_leaves_in_the_midst_of_a_message_counts_as_one_who_left(counting):
    for _ in range(20):  # which of two things is told first is chance
        with socket.create_connection(("127.0.0.1", counting.port)) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0))
            connection.sendall(frame(1, 4, headers()))
            connection.sendall(frame(0, 0, b"\0" + struct.pack(">I", 900) + bytes(100)))
            time.sleep(0.1)
            connection.sendall(frame(3, 0, struct.pack(">I", 8)))  # RST_STREAM, CANCEL
            time.sleep(0.1)
    wait_until(lambda: count(counting, "DEADLINE_EXCEEDED") == 20, "they are counted")
    assert not count(counting, "INVALID_ARGUMENT")


def test_a_call_without_a_message_is_told_so(jpeg_service):
    with (
        grpc.insecure_channel(jpeg_service.target) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.stream_unary(SCORE)(iter([]), timeout=10)
    words = "the call ended without a message: Score takes one"
    assert words in str(from_rpc_error(caught.value, jpeg_service.target))
