"""The weighted sum and its normalisations, against numbers worked by hand and brute force."""

import statistics

import numpy as np
import pytest

from trainer.rewards.weighting import EPSILON, group_zscores, reward_metrics, weighted_sum, zscores
from trainer.spec.sections import RewardSpec


def specs(normalize, **weights):
    return [RewardSpec(name=n, weight=w, normalize=normalize) for n, w in weights.items()]


def test_without_normalisation_it_is_the_weighted_sum_of_the_scores():
    per_reward = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, -4.0])}
    total = weighted_sum(specs("none", a=2.0, b=-0.5), per_reward, ["p", "q"])
    assert total.tolist() == [-3.0, 6.0]


def test_one_reward_of_weight_one_stays_as_it_is_to_the_last_bit():
    scores = np.random.default_rng(0).normal(-1.3, 0.4, 64)
    total = weighted_sum(specs("none", a=1.0), {"a": scores}, ["p"] * 64)
    assert total.tobytes() == scores.tobytes()


def test_zscores_on_numbers_worked_by_hand():
    # Mean 5, deviations -3 -1 -1 -1 0 0 2 4, variance 32 / 8 = 4.
    scores = np.array([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    expected = [-1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 1.0, 2.0]
    np.testing.assert_allclose(zscores(scores), expected, rtol=EPSILON)


def test_group_zscores_on_numbers_worked_by_hand():
    # "p": mean 3, variance (4 + 0 + 4) / 2 = 4. "q": mean 15, variance (25 + 25) / 1 = 50.
    scores = np.array([1.0, 10.0, 3.0, 5.0, 20.0])
    normalised = group_zscores(scores, ["p", "q", "p", "p", "q"])
    half = 5 / 50**0.5
    np.testing.assert_allclose(normalised, [-1.0, -half, 0.0, 1.0, half], rtol=EPSILON)


def test_group_zscores_by_brute_force():
    random = np.random.default_rng(1)
    prompts = [f"prompt {i}" for i in random.integers(0, 7, 40)]
    scores = random.normal(3, 10, 40)
    for prompt, score, got in zip(prompts, scores, group_zscores(scores, prompts), strict=True):
        group = [float(s) for p, s in zip(prompts, scores, strict=True) if p == prompt]
        expected = 0.0
        if len(group) > 1:
            expected = (score - statistics.mean(group)) / (statistics.stdev(group) + EPSILON)
        assert got == pytest.approx(expected)


def test_what_has_no_spread_says_nothing():
    assert zscores(np.array([2.0, 2.0, 2.0])).tolist() == [0.0, 0.0, 0.0]
    prompts = ["alone", "equal", "equal"]
    assert group_zscores(np.array([7.0, 2.0, 2.0]), prompts).tolist() == [0.0, 0.0, 0.0]


def test_a_spread_the_size_of_rounding_says_nothing():
    # 20 and the next float32: what a reward may answer twice for images it cannot tell apart.
    scores = np.array([20.0, np.nextafter(np.float32(20), np.float32(21))], dtype=np.float64)
    for normalised in (zscores(scores), group_zscores(scores, ["p", "p"])):
        assert normalised.tolist() == [0, 0]
    # Half of a spread of 1e-4, which is that of these scores, is lost to ε by its definition.
    scores = 20 + np.array([-1e-4, 1e-4])
    np.testing.assert_allclose(zscores(scores), [-0.5, 0.5], rtol=1e-6)


def test_each_reward_is_normalised_before_it_is_weighted():
    # A thousandfold unit of one reward changes nothing once both are normalised.
    random = np.random.default_rng(2)
    prompts = ["p", "q"] * 8
    scores = {"a": random.normal(size=16), "b": random.normal(size=16)}
    larger = scores | {"b": 1000 * scores["b"]}
    for normalize in ("zscore", "group"):
        rewards = specs(normalize, a=1.0, b=0.5)
        np.testing.assert_allclose(
            weighted_sum(rewards, scores, prompts),
            weighted_sum(rewards, larger, prompts),
            atol=1e-3,
        )


def test_rewards_may_be_normalised_each_in_its_own_way():
    per_reward = {"a": np.array([1.0, 3.0]), "b": np.array([10.0, 30.0])}
    rewards = [RewardSpec(name="a"), RewardSpec(name="b", weight=2.0, normalize="zscore")]
    total = weighted_sum(rewards, per_reward, ["p", "p"])
    np.testing.assert_allclose(total, [1.0 - 2.0, 3.0 + 2.0], rtol=EPSILON)


def test_metrics_are_of_the_sum_and_of_the_raw_scores():
    per_reward = {"a": np.array([1.0, 3.0]), "b": np.array([10.0, 30.0])}
    assert reward_metrics(np.array([0.0, 4.0]), per_reward) == pytest.approx(
        {
            "reward_mean": 2.0,
            "reward_std": 8**0.5,
            "rewards/a/mean": 2.0,
            "rewards/a/std": 2**0.5,
            "rewards/b/mean": 20.0,
            "rewards/b/std": 200**0.5,
        }
    )
