"""Whose place is taken: calls whose handler works on, though the caller has left."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from salon.reward.v1 import reward_pb2 as pb
from services.scoring.metrics import Metrics
from services.server.admission import Admission
from services.server.answers import Answering
from tests.fixtures.calls import status
from tests.fixtures.service import wait_until

FAULTY = "tests.services.faulty"


class Working:
    """A server whose one method, one call at a time, says that it began and waits for a word."""

    def __init__(self):
        self.began, self.go = threading.Semaphore(0), threading.Event()
        self.admission, self.metrics = Admission(1), Metrics(["working"])
        self._answering = Answering(self.admission, self.metrics, None, log_calls=False)
        self.admission.open()

    def answer(self, _request, context):
        return self._answering.answer(context, self._work, "Work")

    def _work(self, call):
        call.reward = "working"
        self.began.release()
        self.go.wait(30)
        return b"done"

    def calls(self, code):
        name = "salon_inference_request_total"
        return self.metrics.registry.get_sample_value(name, {"reward": "working", "code": code})


@pytest.fixture
def working():
    return Working()


@pytest.fixture
def call(working):
    handler = grpc.unary_unary_rpc_method_handler(working.answer)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_registered_method_handlers("test", {"Work": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test/Work").future
    server.stop(0).wait()


def test_a_call_keeps_its_place_until_its_handler_is_done(working, call):
    left = call(b"")
    assert working.began.acquire(timeout=30)
    left.cancel()
    assert working.admission.close(0.3) == 1
    working.admission.open()
    working.go.set()
    assert working.admission.close(30) == 0


def test_who_comes_while_a_handler_works_for_nobody_is_told_to_wait(working, call):
    left = call(b"")
    assert working.began.acquire(timeout=30)
    left.cancel()
    threading.Event().wait(0.3)  # for the server to be told
    assert call(b"").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    working.go.set()


def test_an_answer_that_nobody_waited_for_is_not_counted_as_one(working, call):
    working.go.set()
    assert call(b"").result(30) == b"done"
    working.go.clear()
    assert working.began.acquire(timeout=30)
    left = call(b"", timeout=0.3)
    assert working.began.acquire(timeout=30)
    assert left.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    threading.Event().wait(0.3)
    working.go.set()
    wait_until(lambda: working.calls("DEADLINE_EXCEEDED") == 1, "it is counted")
    assert working.calls("OK") == 1


def test_calls_given_up_behind_a_batch_that_hangs_give_back_their_threads(
    start_service, patient, stub
):
    service = start_service(FAULTY, "--max-concurrent-calls", "2", "--metrics-port", "0")
    calls = stub(service)
    for index in range(12):
        ended = status(calls.Score.future(patient.request(f"{index}"), timeout=0.2))
        assert ended in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")

    def answered():
        try:
            return bool(calls.GetReward(pb.GetRewardRequest(), timeout=1).reward.name)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

    wait_until(answered, "a place is free")
    wait_until(lambda: service.metric('pending_samples{reward="patient"}') == 0, "nobody waits")
    assert len(patient.began()) == 1
