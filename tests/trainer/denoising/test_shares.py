"""How samples are dealt out to updates."""

import numpy as np
import pytest
import torch

from trainer.denoising.shares import stratified_shares


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbers(*sizes):
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((8, 8, 8, 8), 4),
        ((8, 8), 1),
        ((2, 2, 2, 2, 2, 2), 4),  # batches smaller than the number of updates
        ((1,) * 9, 3),
        ((8, 5, 0, 7), 4),  # dropped samples, and a batch of which none is left
        ((3, 2), 4),
    ],
)
def test_every_update_gets_its_part_of_every_batch(sizes, count):
    batches = numbers(*sizes)
    for seed in range(5):
        shares = stratified_shares(batches, count, seeded(seed))
        assert sorted(torch.cat(shares).tolist()) == list(range(len(batches)))
        assert np.ptp([len(share) for share in shares]) <= 1
        for batch in range(len(sizes)):
            parts = [np.count_nonzero(batches[share.numpy()] == batch) for share in shares]
            assert np.ptp(parts) <= 1


def test_full_batches_are_cut_into_equal_parts():
    batches = numbers(6, 6, 6)
    for share in stratified_shares(batches, 3, seeded(0)):
        assert np.bincount(batches[share.numpy()]).tolist() == [2, 2, 2]


def test_fewer_samples_than_updates_make_fewer_shares():
    assert [len(s) for s in stratified_shares(numbers(1, 2), 5, seeded(0))] == [1, 1, 1]


def test_every_sample_is_as_likely_in_every_share():
    batches = numbers(3, 1, 2)
    counts = np.zeros((2, 6))
    for seed in range(2000):
        for number, share in enumerate(stratified_shares(batches, 2, seeded(seed))):
            counts[number, share.numpy()] += 1
    # Three standard deviations of a share in 2000 tosses are 0.034.
    np.testing.assert_allclose(counts / 2000, 0.5, atol=0.04)


def test_the_key_decides():
    batches = numbers(8, 8)
    first, again, other = (stratified_shares(batches, 2, seeded(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
