"""Per-prompt statistics against a brute-force version."""

import json

import numpy as np
import pytest

from trainer.ddpo.advantages import PerPromptStatistics, batch_advantages, group_advantages
from trainer.rewards.weighting import group_zscores


def brute_force(history, prompts, rewards, size, minimum, clip):
    """Advantages from the whole history of (prompt, reward), the last len(rewards) being now."""
    expected = []
    for prompt, reward in zip(prompts, rewards, strict=True):
        kept = [r for p, r in history if p == prompt][-size:]
        used = kept if len(kept) >= minimum else list(rewards)
        value = (reward - sum(used) / len(used)) / (np.std(used) + 1e-6)
        expected.append(max(-clip, min(clip, value)))
    return np.array(expected)


def test_advantages_match_brute_force_over_many_iterations():
    random = np.random.default_rng(0)
    statistics = PerPromptStatistics(buffer_size=8, min_count=4, advantage_clip=1.5)
    history = []
    clipped = 0
    for _ in range(12):
        prompts = [f"prompt {i}" for i in random.integers(0, 5, 11)]
        rewards = random.normal(3, 2, 11)
        history += zip(prompts, rewards, strict=True)
        actual = statistics.advantages(prompts, rewards)
        expected = brute_force(history, prompts, rewards, 8, 4, 1.5)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        clipped += np.count_nonzero(np.abs(actual) == 1.5)
    assert clipped > 0
    assert max(sum(p == prompt for p, _ in history) for prompt, _ in history) > 8


def test_rewards_enter_the_buffer_before_they_are_normalised_by_it():
    statistics = PerPromptStatistics(buffer_size=4, min_count=2, advantage_clip=10)
    first = statistics.advantages(["a", "b"], np.array([0.0, 10.0]))
    np.testing.assert_allclose(first, [-1, 1], rtol=1e-6)  # too few of either: all the batch
    second = statistics.advantages(["a", "b"], np.array([4.0, 10.0]))
    assert second[0] == pytest.approx((4 - 2) / (2 + 1e-6))
    assert second[1] == 0  # no spread at all: nothing to learn, and no division by zero


def test_state_survives_json_exactly():
    random = np.random.default_rng(1)
    original = PerPromptStatistics(8, 2, 10)
    original.advantages(["a", "b", "a"], random.normal(size=3))
    restored = PerPromptStatistics(8, 2, 10)
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert restored.state_dict() == original.state_dict()
    rewards = random.normal(size=2)
    np.testing.assert_array_equal(
        restored.advantages(["a", "b"], rewards), original.advantages(["a", "b"], rewards)
    )


def test_batch_advantages_on_numbers_worked_by_hand():
    # Mean 2, variance (4 + 1 + 0 + 9 + 4 + 4) / 5 = 22 / 5.
    spread = (22 / 5) ** 0.5
    advantages = batch_advantages(np.array([0.0, 1.0, 2.0, 5.0, 0.0, 4.0]), advantage_clip=1.2)
    expected = [-2 / spread, -1 / spread, 0.0, 1.2, -2 / spread, 2 / spread]
    np.testing.assert_allclose(advantages, expected, rtol=1e-4)


def test_batch_advantages_of_sums_that_differ_by_rounding_are_nearly_nothing():
    # Mean 1, standard deviation 1e-6 with one degree of freedom: 1e-6 / (1e-6 + 1e-4) = 1 / 101.
    sums = 1 + np.array([-1e-6, 0.0, 1e-6])
    expected = [-1 / 101, 0, 1 / 101]
    np.testing.assert_allclose(batch_advantages(sums, 5), expected, rtol=1e-6, atol=1e-12)


STEP = float(np.nextafter(np.float32(20), np.float32(21)))  # 20 and the next float32


@pytest.mark.parametrize("rewards", [[0.1] * 7, [20.0, STEP] * 4, [1e3 + 0.3, 1e3 + 0.1 + 0.2] * 4])
def test_rewards_that_are_equal_but_for_rounding_are_no_advantage(rewards):
    rewards = np.array(rewards)
    prompts = ["p"] * len(rewards)
    for buffer, fewest in ((32, 1), (32, 100), (4, 2)):
        statistics = PerPromptStatistics(buffer, fewest, advantage_clip=5)
        assert not statistics.advantages(prompts, rewards).any()
    assert not batch_advantages(rewards, 5).any()
    assert not group_advantages(prompts, rewards, 5).any()


def test_a_reward_that_left_a_buffer_of_equal_ones_is_an_advantage():
    statistics = PerPromptStatistics(buffer_size=2, min_count=2, advantage_clip=5)
    assert statistics.advantages(["p"] * 3, np.array([3.0, 1.0, 1.0])).tolist() == [5, 0, 0]


def test_gdpo_tells_apart_what_statistics_per_prompt_do_not():
    """Figure 2 of GDPO: two rewards that agree count for more than one alone.

    Prompt "p": rewards (0, 0) and (1, 1). Prompt "q": (0, 0) and (1, 0).
    """
    prompts = ["p", "p", "q", "q"]
    first, second = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    total = group_zscores(first, prompts) + group_zscores(second, prompts)
    half = 0.5**0.5
    np.testing.assert_allclose(total, [-2 * half, 2 * half, -half, half], rtol=1e-3)
    agreed, alone = batch_advantages(total, advantage_clip=10)[[1, 3]]
    assert agreed == pytest.approx(2 * alone, rel=1e-3)
    per_prompt = PerPromptStatistics(4, min_count=2, advantage_clip=10).advantages(prompts, total)
    assert per_prompt[1] == pytest.approx(per_prompt[3], rel=1e-3)


def test_one_sample_has_nothing_to_be_compared_with():
    assert batch_advantages(np.array([3.0]), advantage_clip=5).tolist() == [0.0]


def test_group_advantages_on_numbers_worked_by_hand():
    # "p": mean 2, variance (4 + 1 + 9) / 2 = 7. "q": mean 10, variance 2. "r" is alone.
    prompts = ["p", "q", "p", "r", "q", "p"]
    rewards = np.array([0.0, 9.0, 1.0, 50.0, 11.0, 5.0])
    expected = [-2 / 7**0.5, -1 / 2**0.5, -1 / 7**0.5, 0, 1 / 2**0.5, 3 / 7**0.5]
    advantages = group_advantages(prompts, rewards, advantage_clip=10)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4)
    clipped = group_advantages(prompts, rewards, advantage_clip=1)
    np.testing.assert_allclose(clipped, np.clip(advantages, -1, 1))
