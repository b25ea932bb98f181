"""Batches of several callers, the bound on what waits, and what is not worth computing any more."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from salon.errors import Interrupted, Overloaded, ServiceUnavailable, from_rpc_error
from salon.serving import Reward, Sample
from services.scoring import batching
from services.scoring.batching import Batcher
from services.scoring.call import Call
from services.scoring.limits import BatchLimits
from services.scoring.metrics import Metrics
from tests.fixtures.calls import status
from tests.fixtures.service import wait_until
from tests.salon.files import noise

FAULTY = "tests.services.faulty"
PENDING = 'pending_samples{reward="patient"}'


def await_queued(service, samples):
    wait_until(lambda: service.metric(PENDING) == samples, f"{samples} samples pending")
    # Room is taken before a sample is decoded and queued; nothing outside tells when it has been.
    time.sleep(0.5)


def batch_sizes(response):
    return [int(outcome.details["batch"]) for outcome in response.outcomes]


def test_samples_of_several_callers_are_scored_together(start_service, patient, stub):
    service = start_service(FAULTY, "--metrics-port", "0", "--max-batch", "8")
    score = stub(service).Score
    first = score.future(patient.request("first"))
    patient.await_began("first")
    others = [score.future(patient.request(f"{n} a", f"{n} b", wait=False)) for n in range(5)]
    await_queued(service, 11)
    patient.let_go()
    assert batch_sizes(first.result()) == [1]
    sizes = sorted(size for call in others for size in batch_sizes(call.result()))
    assert sizes == [2] * 2 + [8] * 8
    assert service.metric(PENDING) == 0
    assert service.metric('batch_size_sum{reward="patient"}') == 12, "11 and the warm-up"
    assert service.metric('exec_total{reward="patient"}') == 4


def test_a_call_larger_than_a_batch_takes_several(start_service, patient, stub):
    service = start_service(FAULTY, "--max-batch", "3")
    request = patient.request(*(str(number) for number in range(8)), wait=False)
    assert batch_sizes(stub(service).Score(request)) == [3] * 6 + [2] * 2


def test_what_nobody_waits_for_is_dropped_when_its_turn_comes(start_service, patient, stub):
    service = start_service(FAULTY, "--metrics-port", "0")
    score = stub(service).Score
    first = score.future(patient.request("first"))
    patient.await_began("first")
    expired = score.future(patient.request("late", "later"), timeout=2)
    cancelled = score.future(patient.request("unwanted"))
    await_queued(service, 4)
    cancelled.cancel()
    assert status(expired) == "DEADLINE_EXCEEDED"
    time.sleep(0.5)  # The service's copy of a deadline ends a little later than the caller's own.
    last = score.future(patient.request("last"))
    patient.let_go()
    assert (status(first), status(last)) == (1.0, 1.0)
    assert patient.began() == {"first", "last"}
    for why, samples in (("expired", 2), ("cancelled", 1)):
        assert service.metric(f'dropped_samples_total{{reward="patient",why="{why}"}}') == samples
    wait_until(lambda: service.metric(PENDING) == 0, "nothing pending")


def test_a_full_queue_says_when_to_come_back_and_stays_healthy(start_service, patient, stub):
    service = start_service(FAULTY, "--metrics-port", "0", "--max-pending", "3")
    score = stub(service).Score
    calls = [score.future(patient.request("first"))]
    patient.await_began("first")
    calls.append(score.future(patient.request("second", "third")))
    wait_until(lambda: service.metric(PENDING) == 3, "three pending")
    with pytest.raises(grpc.RpcError) as caught:
        score(patient.request("fourth"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, retry = ErrorInfo(), RetryInfo()
    details = rpc_status.from_call(caught.value).details
    assert details[0].Unpack(info)
    assert details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("Overloaded", "salon")
    assert retry.retry_delay.ToMilliseconds() > 0
    error = from_rpc_error(caught.value, service.target)
    assert isinstance(error, Overloaded)
    assert error.retry_after_seconds == retry.retry_delay.ToNanoseconds() / 1e9
    for name in ("", "liveness", "readiness"):
        assert service.health(name) == "SERVING"
    patient.let_go()
    assert [status(call) for call in calls] == [1.0, 1.0]
    assert patient.began() == {"first", "second", "third"}
    assert service.metric('request_total{code="RESOURCE_EXHAUSTED",reward="patient"}') == 1


def test_a_call_larger_than_the_queue_is_taken_when_it_is_empty(start_service, patient, stub):
    service = start_service(FAULTY, "--max-pending", "2")
    request = patient.request("a", "b", "c", wait=False)
    assert len(stub(service).Score(request).outcomes) == 3


class Weighing(Reward):
    """The image's height; costs as much, remembers its batches, and waits where told to."""

    name, version, description = "weighing", "1", "The height."

    def __init__(self):
        self.batches = []
        self.go = threading.Event()

    def cost(self, sample):
        return float(sample.image.shape[0])

    def score(self, samples):
        self.batches.append([sample.image.shape[0] for sample in samples])
        self.go.wait(30)
        return self.batches[-1]


def submit(pool, batcher, *heights):
    samples = [Sample(noise(height, 2), "", {}) for height in heights]
    return pool.submit(batcher.score, samples, Call(lambda: None, structlog.get_logger()))


@pytest.fixture
def weighing():
    """A reward and its batcher, `weighing(max_batch, max_delay)`, and threads that call it."""
    made = []
    with ThreadPoolExecutor(8) as pool:

        def make(max_batch, max_delay=0.0):
            reward = Weighing()
            limits = BatchLimits(max_batch, max_delay, max_pending=100)
            made.append(Batcher(reward, limits, Metrics([reward.name])))
            return reward, made[-1], pool

        yield make
        for batcher in made:
            batcher.close()


def test_a_batch_is_as_large_as_its_cost_allows_and_never_empty(weighing):
    reward, batcher, pool = weighing(max_batch=10)
    first = submit(pool, batcher, 1)
    wait_until(lambda: reward.batches == [[1]], "the first is scored")
    others = submit(pool, batcher, 4, 5, 2, 50, 7, 3)
    reward.go.set()
    assert [outcome.score for outcome in others.result(30)] == [4, 5, 2, 50, 7, 3]
    assert first.result(30)[0].score == 1
    assert reward.batches == [[1], [4, 5], [2], [50], [7, 3]]


def test_a_large_call_takes_turns_with_a_small_one(weighing):
    reward, batcher, pool = weighing(max_batch=4)
    large = submit(pool, batcher, *[1] * 13)
    wait_until(lambda: reward.batches, "the first batch is scored")
    small = submit(pool, batcher, 2)
    wait_until(lambda: len(batcher._queue) == 2, "both wait")
    reward.go.set()
    assert [outcome.score for outcome in large.result(30)] == [1] * 13
    assert small.result(30)[0].score == 2
    assert reward.batches == [[1] * 4, [1] * 4, [2, 1, 1], [1] * 3]


def test_a_batch_that_is_not_full_waits_for_company_and_a_full_one_does_not(weighing):
    reward, batcher, pool = weighing(max_batch=10, max_delay=1000)
    reward.go.set()
    calls = [submit(pool, batcher, 4), submit(pool, batcher, 6)]
    assert sorted(outcome.score for call in calls for outcome in call.result(30)) == [4, 6]
    assert [sorted(batch) for batch in reward.batches] == [[4, 6]]


def test_a_delay_ends(weighing):
    reward, batcher, pool = weighing(max_batch=10, max_delay=0.05)
    reward.go.set()
    assert submit(pool, batcher, 4).result(30)[0].score == 4


def test_a_batch_that_never_ends_is_noticed_while_it_lasts(weighing, monkeypatch):
    reward, batcher, pool = weighing(max_batch=10)
    call = submit(pool, batcher, 1)
    wait_until(lambda: reward.batches, "it is scored")
    assert not batcher.is_stuck()
    monkeypatch.setattr(batching, "STUCK_SECONDS", 0)
    assert batcher.is_stuck()
    reward.go.set()
    call.result(30)
    wait_until(lambda: not batcher.is_stuck(), "the batch is over")


def test_a_closed_batcher_turns_away_what_waits_and_what_is_being_scored(weighing):
    reward, batcher, pool = weighing(max_batch=10)
    calls = [submit(pool, batcher, 9)]
    wait_until(lambda: reward.batches == [[9]], "it is scored")
    calls.append(submit(pool, batcher, 3))
    wait_until(lambda: batcher._queue, "it waits")
    batcher.close()
    calls.append(submit(pool, batcher, 1))
    for call, error in zip(
        calls, (Interrupted, ServiceUnavailable, ServiceUnavailable), strict=True
    ):
        with pytest.raises(ServiceUnavailable, match="another replica") as caught:
            call.result(30)
        assert type(caught.value) is error, "only what was begun may be at fault"
    reward.go.set()
    assert reward.batches == [[9]]
