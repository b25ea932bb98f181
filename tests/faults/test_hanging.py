"""A service that hangs, beside one that does not."""

import signal

import pytest

from tests.faults.harness import Harness, assert_scored, photos
from tests.fixtures.stack import RunningStack, wait_until


@pytest.fixture
def two_services(settings, own_redis, monkeypatch):
    """A stack of the services jpeg and l2, and of time enough to hang."""
    settings = settings.model_copy(
        update={
            "redis_url": own_redis.url,
            "score_task_seconds": 120.0,
            "resend_seconds": 130.0,
            "visibility_timeout_seconds": 140,
        }
    )
    rewards = ("jpeg_compressibility", "jpeg_incompressibility", "l2")
    running = RunningStack(settings, own_redis, monkeypatch, rewards)
    yield running
    running.stop()


def test_the_batches_of_other_services_do_not_wait_for_it(two_services):
    healthy = Harness(two_services)
    hanging = Harness(two_services, rewards=["l2"], references={"l2": photos(1)[0]})
    for worker in ("scoring-jpeg_compressibility", "scoring-l2"):
        two_services.add_flags(worker, "-c", "1")  # a single call takes all it has
    two_services.start()
    warm = photos(2)
    assert_scored(healthy.submit(warm), warm)
    assert hanging.submit(warm).result(60).valid.all()

    two_services.signal("l2", signal.SIGSTOP)
    futures = [hanging.submit(photos(1, seed)) for seed in range(3)]
    wait_until(lambda: two_services.redis.keys("salon:attempts:*"), "its worker has its hands full")
    for seed in range(4):
        images = photos(3, seed)
        assert_scored(healthy.submit(images), images)
    assert not any(future.done() for future in futures), [
        f.exception(0) if f.done() else None for f in futures
    ]
    two_services.signal("l2", signal.SIGCONT)
    assert all(future.result(60).valid.all() for future in futures)
    for harness in (healthy, hanging):
        harness.scorer.close()
