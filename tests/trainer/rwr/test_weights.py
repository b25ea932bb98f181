"""The weights, by hand and against brute force."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rwr.weights import (
    effective_samples,
    for_each_prompt,
    softmax_weights,
    sparse_weights,
)

REWARDS = st.lists(st.floats(-50, 50), min_size=1, max_size=30)


def test_softmax_by_hand():
    # e^0 : e^(0.5 ln 2 · 2) = 1 : 2 : 4, which sum to 7, scaled to a mean of 1.
    rewards = np.array([0.0, 2.0, 4.0])
    np.testing.assert_allclose(
        softmax_weights(rewards, 0.5 * math.log(2)), [3 / 7, 6 / 7, 12 / 7], rtol=1e-12
    )


def test_the_inverse_temperature_multiplies_the_rewards():
    rewards = np.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(softmax_weights(rewards, 0.0), [1, 1, 1])
    np.testing.assert_allclose(softmax_weights(rewards, 0.2), softmax_weights(rewards / 5, 1.0))
    spread = [np.ptp(softmax_weights(rewards, beta)) for beta in (0.1, 0.2, 1.0, 10.0)]
    assert spread == sorted(spread)
    np.testing.assert_allclose(softmax_weights(rewards, 1000.0), [0, 0, 3])


@settings(deadline=None)
@given(REWARDS, st.floats(0, 10))
def test_softmax_against_its_definition(values, beta):
    rewards = np.array(values)
    weights = softmax_weights(rewards, beta)
    # exp(500) is finite in float64, so the definition can be computed as it stands.
    plain = np.array([math.exp(beta * value) for value in values])
    np.testing.assert_allclose(weights, plain / plain.mean(), rtol=1e-9, atol=1e-300)
    assert weights.sum() == pytest.approx(len(values))


def test_only_differences_of_rewards_matter_even_of_huge_ones():
    rewards = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(softmax_weights(rewards + 1e6, 1.0), softmax_weights(rewards, 1.0))


def test_sparse_keeps_the_best_tenth():
    rewards = np.random.default_rng(0).permutation(np.arange(100.0))
    weights = sparse_weights(rewards, 0.9)
    np.testing.assert_array_equal(weights, (rewards >= 90).astype(float))
    assert weights.sum() == 10


def test_the_threshold_is_interpolated():
    # Positions 0, 1, 2, 3 of four rewards: 0.9 lies at 2.7, so C = 8 + 0.7 · 8 = 13.6.
    np.testing.assert_array_equal(sparse_weights(np.array([1.0, 16, 8, 2]), 0.9), [0, 1, 0, 0])
    # 0.5 lies at 1.5, so C = 2 + 0.5 · 6 = 5.
    np.testing.assert_array_equal(sparse_weights(np.array([1.0, 16, 8, 2]), 0.5), [0, 1, 1, 0])


def test_ties_with_the_threshold_are_kept():
    np.testing.assert_array_equal(sparse_weights(np.array([5.0, 5, 5, 1]), 0.9), [1, 1, 1, 0])
    np.testing.assert_array_equal(sparse_weights(np.full(6, 2.5), 0.9), np.ones(6))


@settings(deadline=None)
@given(REWARDS, st.floats(0, 0.99))
def test_sparse_keeps_the_best_and_whoever_equals_whom_it_keeps(values, percentile):
    weights = sparse_weights(np.array(values), percentile)
    kept = [value for value, weight in zip(values, weights, strict=True) if weight]
    left = [value for value, weight in zip(values, weights, strict=True) if not weight]
    assert set(weights) <= {0.0, 1.0}
    assert max(values) in kept
    assert all(low < min(kept) for low in left)
    assert len(left) <= math.ceil(percentile * (len(values) - 1))


def test_nothing_is_discarded_at_percentile_zero():
    np.testing.assert_array_equal(sparse_weights(np.array([3.0, 1, 2]), 0.0), [1, 1, 1])


@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_each_prompt_has_a_softmax_of_its_own(beta):
    prompts = ["cat", "dog", "cat", "cat", "owl", "dog"]
    rewards = np.array([1.0, 50, 2, 3, -7, 51])
    weights = for_each_prompt(partial(softmax_weights, inverse_temperature=beta), rewards, prompts)
    for prompt, count in (("cat", 3), ("dog", 2), ("owl", 1)):
        own = [i for i, name in enumerate(prompts) if name == prompt]
        plain = np.exp(beta * rewards[own])
        np.testing.assert_allclose(weights[own], count * plain / plain.sum())
        assert weights[own].sum() == pytest.approx(count)


def test_each_prompt_has_a_threshold_of_its_own():
    prompts = ["easy"] * 10 + ["hard"] * 10
    rewards = np.concatenate([np.arange(10.0) + 100, np.arange(10.0)])
    weights = for_each_prompt(partial(sparse_weights, percentile=0.9), rewards, prompts)
    np.testing.assert_array_equal(np.flatnonzero(weights), [9, 19])
    np.testing.assert_array_equal(np.flatnonzero(sparse_weights(rewards, 0.9)), [8, 9])


def test_effective_samples_by_hand():
    assert effective_samples(np.ones(8)) == 8
    assert effective_samples(np.array([0.0, 5, 0])) == 1
    assert effective_samples(np.array([1.0, 3])) == pytest.approx(16 / 10)


def test_rewards_that_differ_by_rounding_alone_are_all_kept():
    rewards = np.array([0.3, 0.1 + 0.2] * 8)
    assert sparse_weights(rewards, 0.9).tolist() == [1.0] * 16
