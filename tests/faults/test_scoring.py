"""The queue's promise: every sample ends in its true score or an error, whatever dies."""

import re
import signal

import psutil
import pytest

from salon.errors import SalonError
from salon.queue.broker import SCORE_TASK, score_queue
from salon.queue.replies import ReplyKind, ReplyStream
from tests.faults.harness import Harness, assert_scored, hold_batch, photos
from tests.fixtures.stack import wait_until
from trainer.runtime.interrupt import Cause, Interrupted


@pytest.fixture
def harness(stack):
    made = Harness(stack)
    yield made
    made.scorer.close()


def attempts_of(stack):
    """Of the one batch that a worker has taken."""
    return sum(int(stack.redis.get(key)) for key in stack.redis.keys("salon:attempts:*"))


def test_many_batches_at_once_are_scored_each_in_its_order(stack, harness):
    stack.start("jpeg", "scoring")
    batches = [photos(7, seed) for seed in range(12)]
    futures = [harness.submit(images) for images in batches]
    for future, images in zip(futures, batches, strict=True):
        assert_scored(future, images)
    # The worker tidies up after it has replied.
    wait_until(lambda: not stack.redis.keys("salon:blob:*"), "no blob is left")
    wait_until(lambda: not stack.redis.keys("salon:attempts:*"), "no attempt is counted")


def test_a_batch_larger_than_a_message_is_split_and_put_together(stack):
    small = stack.settings.model_copy(update={"max_message_bytes": 64 * 1024})
    harness = Harness(stack, settings=small)
    stack.start("jpeg", "scoring")
    images = photos(70)  # 3 KiB each: at most 20 in a message
    assert_scored(harness.submit(images), images)
    harness.scorer.close()


def test_kill_of_the_scoring_worker_in_mid_batch_loses_nothing(stack, harness):
    future, images = hold_batch(stack, harness)
    stack.kill("scoring")
    assert not future.done()
    stack.signal("jpeg", signal.SIGCONT)
    assert_scored(future, images)


def test_a_reward_that_raises_for_good_keeps_its_error(stack, monkeypatch):
    """Its service ends and is started again, and the batch has no attempt left."""
    monkeypatch.setenv("SALON_SCORE_ATTEMPTS", "1")
    stack.serve("tests.services.faulty:Fragile", "fragile")
    stack.start("jpeg", "scoring")
    harness = Harness(stack, rewards=("fragile",), deadline=120)
    future = harness.scorer.submit(photos(3), ["break"] * 3)
    with pytest.raises(SalonError, match=r"fails even on its own example \(RuntimeError\)"):
        future.result(timeout=120)
    harness.scorer.close()


def test_kill_of_one_worker_child_in_mid_batch_loses_nothing(stack, harness):
    future, images = hold_batch(stack, harness)
    for child in psutil.Process(stack.pid("scoring")).children():
        child.kill()
    stack.signal("jpeg", signal.SIGCONT)
    assert_scored(future, images)


def test_kill_of_the_service_in_mid_batch_loses_nothing(stack, harness):
    future, images = hold_batch(stack, harness)
    stack.kill("jpeg")
    assert_scored(future, images)


def test_restart_of_redis_loses_nothing(stack, harness):
    stack.start("jpeg", "scoring")
    batches = [photos(4, seed) for seed in range(8)]
    futures = [harness.submit(images) for images in batches[:4]]
    stack.redis_server.stop()
    stack.redis_server.start()
    futures += [harness.submit(images) for images in batches[4:]]
    for future, images in zip(futures, batches, strict=True):
        assert_scored(future, images)


def test_a_batch_waits_for_a_service_that_is_away_and_says_so(stack, harness):
    stack.start("scoring")
    images = photos(3)
    future = harness.submit(images)
    wait_until(lambda: harness.notes, "a note")
    target = stack.settings.reward_target
    wait_until(
        lambda: (
            any(f"reward service jpeg_compressibility at {target}" in n for n in harness.notes)
            or any(f"reward service jpeg_incompressibility at {target}" in n for n in harness.notes)
        ),
        "the note names the service",
    )
    assert not future.done()
    stack.start("jpeg")
    assert_scored(future, images)


def test_a_message_that_only_newer_workers_read_stays_in_the_queue_and_says_so(stack):
    """Until its deadline: one that could read it may start any time."""
    stack.start("scoring")
    replies = ReplyStream(stack.redis, "a" * 16, 60)
    newer = {"batch": "b" * 32, "reply_to": "a" * 16, "v": 2, "reward": {"of": "another kind"}}
    queue = score_queue("jpeg_compressibility")
    stack.app.send_task(SCORE_TASK, kwargs={"message": newer}, queue=queue)
    told = []

    def told_twice():
        told.extend(replies.read(0.1))
        return len(told) >= 2

    wait_until(told_twice, "it is put back, taken again, and its trainer told each time")
    assert {reply.kind for reply in told} == {ReplyKind.WAITING}
    assert b"reads messages up to version 1, and the trainer's is 2" in told[0].body


def test_past_its_deadline_a_batch_fails_and_names_the_service(stack):
    harness = Harness(stack)
    stack.start("scoring")
    future = harness.submit(photos(3))
    named = f"reward service jpeg_.* at {stack.settings.reward_target}"
    wait_until(lambda: any(re.search(named, note) for note in harness.notes), "a worker's word")
    harness.expire()
    with pytest.raises(SalonError, match=f"gave no score within 60 s.*{named}"):
        future.result(timeout=60)
    harness.scorer.close()


def test_past_its_deadline_with_no_worker_at_all_the_queue_is_named(stack):
    harness = Harness(stack, deadline=1.0)
    future = harness.submit(photos(3))
    with pytest.raises(SalonError, match=r"no worker answered on queue score\.jpeg_"):
        future.result(timeout=60)
    harness.scorer.close()


def test_a_batch_that_always_takes_down_its_worker_ends_in_an_error(stack, tmp_path):
    stack.serve("tests.services.faulty", "patient")
    stack.start("jpeg", "scoring")
    harness = Harness(stack, rewards=["patient"])
    metadata = [{"folder": str(tmp_path), "wait": True}]
    future = harness.scorer.submit(photos(1), ["x"], metadata)
    wait_until((tmp_path / "x.began").exists, "the service has the batch")
    (tmp_path / "x.began").unlink()
    for attempt in (1, 2, 3):
        wait_until(lambda number=attempt: attempts_of(stack) == number, f"attempt {attempt}")
        for child in psutil.Process(stack.pid("scoring")).children():
            child.kill()
    with pytest.raises(SalonError, match=r"took down its worker or its service.* 3 times"):
        future.result(timeout=60)
    (tmp_path / "go").touch()
    assert not (tmp_path / "x.began").exists()
    harness.scorer.close()


def test_a_service_that_hangs_for_a_while_costs_nothing_but_time(stack, harness):
    stack.start("jpeg", "scoring")
    warm = photos(2)
    assert_scored(harness.submit(warm), warm)
    stack.signal("jpeg", signal.SIGSTOP)
    images = photos(5)
    future = harness.submit(images)
    wait_until(lambda: any("DEADLINE_EXCEEDED" in note for note in harness.notes), "a note")
    assert not future.done()
    stack.signal("jpeg", signal.SIGCONT)
    assert_scored(future, images)


def test_closing_forgets_what_is_pending(stack):
    harness = Harness(stack)
    future = harness.submit(photos(3))
    harness.scorer.close()
    with pytest.raises(SalonError, match="closed"):
        future.result(timeout=0)
    assert stack.redis.keys("salon:blob:*") == []


def test_an_interrupt_ends_the_wait(stack, harness):
    future = harness.submit(photos(3))
    harness.interrupt.set(Cause.CANCELLED)
    with pytest.raises(Interrupted):
        future.result(timeout=10)
    with pytest.raises(Interrupted):
        harness.submit(photos(3))
    wait_until(lambda: not stack.redis.keys("salon:blob:*"), "no blob is left")
