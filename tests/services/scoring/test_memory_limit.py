"""What batches teach about the device's memory."""

from services.scoring.memory_limit import GOOD_BATCHES, MemoryLimit


def test_a_batch_that_did_not_fit_bounds_the_next():
    limit = MemoryLimit("reward")
    limit.learn(32, None)
    assert limit.samples == float("inf")
    limit.learn(32, 8)
    assert limit.samples == 8
    limit.learn(8, 2)
    assert limit.samples == 2


def test_it_is_tried_twice_as_large_after_many_full_batches_that_fit():
    limit = MemoryLimit("reward")
    limit.learn(32, 8)
    for _ in range(GOOD_BATCHES - 1):
        limit.learn(8, None)
    limit.learn(7, None)
    assert limit.samples == 8, "a smaller one shows nothing"
    limit.learn(8, None)
    assert limit.samples == 16
    limit.learn(16, 8)
    assert limit.samples == 8


def test_a_batch_that_did_not_fit_starts_the_count_again():
    limit = MemoryLimit("reward")
    limit.learn(32, 8)
    for _ in range(GOOD_BATCHES - 1):
        limit.learn(8, None)
    limit.learn(8, 8)
    limit.learn(8, None)
    assert limit.samples == 8
