"""Rewards of which several batches may be scored at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog

from salon.errors import Interrupted
from salon.serving import Reward, Sample
from services.scoring.batching import Batcher
from services.scoring.call import Call
from services.scoring.limits import BatchLimits
from services.scoring.metrics import Metrics
from tests.fixtures.service import wait_until
from tests.salon.files import noise

THREADS = 2


class Meeting(Reward):
    """The image's height, once as many threads are here as may be; raises at height 13."""

    name, version, description, threads = "meeting", "1", "The height.", THREADS

    def __init__(self):
        self.go = threading.Event()
        self.inside, self.most = [], 0

    def score(self, samples):
        heights = [sample.image.shape[0] for sample in samples]
        self.inside.append(heights)
        self.most = max(self.most, len(self.inside))
        self.go.wait(30)
        self.inside.remove(heights)
        if 13 in heights:
            raise ValueError("thirteen")
        return heights


@pytest.fixture
def meeting():
    """The reward, its batcher, and what submits a call of images of these heights."""
    reward = Meeting()
    limits = BatchLimits(max_batch=3, max_delay_seconds=0.0, max_pending=100)
    batcher = Batcher(reward, limits, Metrics([reward.name]))

    def submit(*heights):
        samples = [Sample(noise(height, 2), "", {}) for height in heights]
        return pool.submit(batcher.score, samples, Call(lambda: None, structlog.get_logger()))

    with ThreadPoolExecutor(8) as pool:
        yield reward, batcher, submit
        reward.go.set()
        batcher.close()


def test_one_call_is_scored_by_several_threads_and_answered_in_order(meeting):
    reward, _, submit = meeting
    call = submit(*range(20, 31))
    wait_until(lambda: sorted(reward.inside) == [[20, 21, 22], [23, 24, 25]], "two are at it")
    reward.go.set()
    assert [outcome.score for outcome in call.result(30)] == list(range(20, 31))


def test_no_more_than_may_be_are_scored_at_once_and_the_others_after_them(meeting):
    reward, batcher, submit = meeting
    calls = {height: submit(height) for height in (4, 5, 6, 7, 8, 9)}
    wait_until(lambda: len(reward.inside) == THREADS, "two are scored")
    wait_until(lambda: len(batcher._queue) == 4, "four wait")
    reward.go.set()
    for height, call in calls.items():
        assert [outcome.score for outcome in call.result(30)] == [height]
    assert reward.most == THREADS


def test_a_sample_that_fails_fails_alone(meeting):
    reward, _, submit = meeting
    calls = [submit(2, 13, 4), submit(5)]
    reward.go.set()
    assert [outcome.HasField("error") for outcome in calls[0].result(30)] == [False, True, False]
    assert calls[1].result(30)[0].score == 5


def test_a_delay_lets_calls_meet_in_one_batch():
    reward = Meeting()
    reward.go.set()
    limits = BatchLimits(max_batch=2, max_delay_seconds=1000.0, max_pending=100)
    metrics = Metrics([reward.name])
    batcher = Batcher(reward, limits, metrics)
    call = Call(lambda: None, structlog.get_logger())
    with ThreadPoolExecutor(2) as pool:
        samples = [Sample(noise(height, 2), "", {}) for height in (2, 3)]
        calls = [pool.submit(batcher.score, [sample], call) for sample in samples]
        assert sorted(done.result(30)[0].score for done in calls) == [2, 3]
    batcher.close()
    count = "salon_inference_exec_total", {"reward": "meeting"}
    assert metrics.registry.get_sample_value(*count) == 1


def test_all_that_is_being_scored_is_turned_away_when_the_batcher_closes(meeting):
    reward, batcher, submit = meeting
    calls = [submit(4), submit(5)]
    wait_until(lambda: len(reward.inside) == THREADS, "both are scored")
    batcher.close()
    reward.go.set()
    for call in calls:
        with pytest.raises(Interrupted):
            call.result(30)
