"""Which timesteps are chosen."""

import numpy as np
import pytest
import torch

from trainer.ddpo.timesteps import chosen_timesteps


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("fraction", "steps", "count"),
    [(1, 50, 50), (0.5, 5, 3), (0.28, 50, 14), (0.07, 100, 7), (1e-12, 50, 1), (0.99, 4, 4)],
)
def test_each_sample_has_its_share_of_different_steps(fraction, steps, count):
    chosen = chosen_timesteps(40, steps, fraction, seeded(0))
    assert chosen.shape == (40, count)
    assert all(len(set(row)) == count for row in chosen.tolist())
    assert chosen.min() >= 0
    assert chosen.max() < steps


def test_the_mean_over_chosen_steps_is_the_mean_over_all_in_expectation():
    values = torch.tensor([1.0, 4.0, 9.0, 16.0, 25.0])
    chosen = chosen_timesteps(40_000, 5, 0.4, seeded(1))
    # The standard deviation of one mean of two is 5.3: of 40,000 of them, 0.027.
    assert values[chosen].mean().item() == pytest.approx(11, abs=0.1)
    assert np.bincount(chosen.flatten()).tolist() == pytest.approx([16_000] * 5, abs=500)
