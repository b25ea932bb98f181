"""Pixels in a shared directory on their way through the queue: true scores, and no file left."""

import signal

import pytest

from salon.errors import SalonError
from tests.faults.harness import Harness, assert_scored, hold_batch, photos
from tests.fixtures.stack import RunningStack, wait_until


@pytest.fixture
def root(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def sharing_stack(stack, root, own_redis, monkeypatch):
    """A stack whose trainers and services share `root`."""
    settings = stack.settings.model_copy(update={"shared_dir": root})
    running = RunningStack(settings, own_redis, monkeypatch)
    yield running
    running.stop()


@pytest.fixture
def harness(sharing_stack):
    made = Harness(sharing_stack)
    yield made
    made.scorer.close()


def files_in(root):
    return list(root.glob("salon-batch-*"))


def largest_blob(stack):
    return max((stack.redis.strlen(key) for key in stack.redis.keys("salon:blob:*")), default=0)


def test_only_the_names_of_the_images_go_through_redis(sharing_stack, harness, root):
    images = photos(40)
    future = harness.submit(images)
    assert sum(path.stat().st_size for path in files_in(root)) == 2 * images.nbytes
    assert 0 < largest_blob(sharing_stack) < 60 * len(images)
    sharing_stack.start("jpeg", "scoring")
    assert_scored(future, images)
    assert files_in(root) == []


def test_kill_of_the_service_in_mid_batch_loses_nothing(sharing_stack, harness, root):
    future, images = hold_batch(sharing_stack, harness)
    assert files_in(root) != []
    sharing_stack.kill("jpeg")
    assert_scored(future, images)
    assert files_in(root) == []


def test_a_service_that_does_not_see_the_files_gets_the_pixels_through_redis(stack, root):
    stack.start("jpeg", "scoring")
    sharing = stack.settings.model_copy(update={"shared_dir": root})
    harness = Harness(stack, settings=sharing)
    batches = [photos(5, seed) for seed in range(4)]
    for images in batches[:2]:
        assert_scored(harness.submit(images), images)
    stack.signal("jpeg", signal.SIGSTOP)
    future = harness.submit(batches[2])
    assert files_in(root) == []  # it has learnt
    stack.signal("jpeg", signal.SIGCONT)
    assert_scored(future, batches[2])
    harness.scorer.close()
    for part in ("scoring", "jpeg"):  # nothing is wrong
        assert "--shared-dir" not in stack.log(part)


def test_a_file_that_is_gone_ends_in_an_error(sharing_stack, harness, root):
    future = harness.submit(photos(3))
    for path in files_in(root):
        path.unlink()
    sharing_stack.start("jpeg", "scoring")
    with pytest.raises(SalonError, match=r"shared file .* is gone"):
        future.result(timeout=60)


def test_closing_and_deadlines_leave_no_file(sharing_stack, root):
    closed, late = Harness(sharing_stack), Harness(sharing_stack)
    futures = [harness.submit(photos(3)) for harness in (closed, late)]
    assert len(files_in(root)) == 4
    late.expire()
    with pytest.raises(SalonError, match="no worker answered"):
        futures[1].result(timeout=60)
    wait_until(lambda: len(files_in(root)) == 2, "the late batch's files are gone")
    closed.scorer.close()
    late.scorer.close()
    assert files_in(root) == []
