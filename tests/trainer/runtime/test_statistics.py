"""Statistics of scores: their right values, and the cases in which there is none."""

import math

import numpy as np
import pytest

from trainer.runtime.statistics import FEWEST_PAIRS, compare, groups, has_spread, sample_std

STEP_APART = np.array([0.3, np.nextafter(np.float32(0.3), np.float32(1))] * 4, dtype=np.float32)


def test_compare_on_numbers_worked_by_hand():
    # Before: mean 2, sample variance ((1)² + 0 + (1)²) / 2 = 1. After: mean 5.
    result = compare(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    assert result["before"] == {"mean": 2.0, "std": 1.0, "n": 3}
    assert result["after"] == {"mean": 5.0, "std": 1.0, "n": 3}
    assert result["effect_size"] == 3.0


def test_an_effect_that_is_there_has_an_interval_without_zero():
    random = np.random.default_rng(0)
    before = random.normal(0, 1, 64)
    result = compare(before, before + 1 + random.normal(0, 0.1, 64))
    low, high = result["ci95"]
    assert 0 < low < result["effect_size"] < high


def test_no_effect_has_an_interval_around_zero():
    before = np.random.default_rng(0).normal(0, 1, 64)
    low, high = compare(before, np.random.default_rng(1).normal(0, 1, 64))["ci95"]
    assert low < 0 < high


def test_the_interval_covers_the_true_effect_about_95_times_in_100():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        before = random.normal(0, 1, 64)
        low, high = compare(before, before + random.normal(1, 0.5, 64))["ci95"]
        covered += low <= 1.0 <= high
    # Binomial(100, 0.95) is below 87 with probability 0.0004.
    assert covered >= 87


def test_pairs_with_an_error_are_left_out():
    before = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    after = np.array([4.0, 5.0, 6.0, 9.0, np.nan])
    assert compare(before, after)["effect_size"] == 3.0
    assert compare(before, after)["after"]["n"] == 3


@pytest.mark.parametrize(
    "before",
    [
        np.full(2, 2.0),
        np.full(64, 0.1),  # the standard deviation of which numpy finds to be 1.4e-17
        np.array([0.3, 0.1 + 0.2] * 4),
        STEP_APART.astype(np.float64),
        np.full(8, -38_123.4),
        np.zeros(8),
    ],
)
def test_scores_that_are_equal_but_for_rounding_have_no_effect_size(before):
    result = compare(before, before + 1.0)
    assert not has_spread(before)
    assert (result["effect_size"], result["ci95"]) == (None, None)
    assert result["undefined"] == "the scores before do not differ"
    assert result["before"]["std"] == 0
    assert result["after"]["mean"] == pytest.approx(before[0] + 1)


@pytest.mark.parametrize(
    "before", [np.arange(8) + 1e6, np.arange(8) * 1e-9, np.linspace(1, 1.00001, 8)]
)
def test_a_spread_that_is_small_beside_the_scores_is_one_all_the_same(before):
    result = compare(before, before + 2 * before.std(ddof=1))
    assert result["effect_size"] == pytest.approx(2, rel=1e-6)
    assert result["before"]["std"] == before.std(ddof=1)
    assert result["undefined"] is None


def test_the_spread_before_is_judged_by_the_scores_before_alone():
    before = np.linspace(1e-4, 2e-4, 8)
    result = compare(before, before + 1e4)
    assert result["effect_size"] == pytest.approx(1e4 / before.std(ddof=1))
    assert result["undefined"] is None
    low, high = result["ci95"]
    assert low < result["effect_size"] < high


def test_the_spread_of_a_resample_is_judged_by_its_own_scores():
    before = np.array([1e9, *np.linspace(1, 2, 63)])  # without the first in every third resample
    assert compare(before, before * 2)["undefined"] is None


@pytest.mark.parametrize("count", range(2, FEWEST_PAIRS))
def test_few_pairs_have_an_effect_size_but_no_interval(count):
    before = np.arange(count, dtype=np.float64)
    result = compare(before, before + 1)
    assert result["effect_size"] == pytest.approx(1 / before.std(ddof=1))
    assert result["ci95"] is None
    assert result["undefined"] == f"{count} images are fewer than the 5 it takes"


def test_the_fewest_pairs_have_an_interval_of_some_width():
    before = np.arange(FEWEST_PAIRS, dtype=np.float64)
    low, high = compare(before, before[::-1] + 1)["ci95"]
    assert math.isfinite(low)
    assert high - low > 0.1


def test_resamples_without_spread_leave_no_interval():
    # One score in eight differs: every third resample lacks it.
    before = np.array([0.1] * 7 + [0.2])
    result = compare(before, before + np.linspace(0, 1, 8))
    assert result["effect_size"] is not None
    assert (result["ci95"], result["undefined"]) == (None, "too few of the scores before differ")


def test_pairs_that_are_all_equal_have_no_effect_and_no_interval():
    before = np.random.default_rng(0).normal(0, 1, 64)
    result = compare(before, before * (1 + 3e-16))
    assert (result["effect_size"], result["ci95"]) == (0.0, None)
    assert result["undefined"] == "every image scores as it did before"


@pytest.mark.parametrize(
    ("before", "mean", "n", "why"),
    [
        ([1.0], 1.0, 1, "one image has a score both times"),
        ([math.nan, math.nan], None, 0, "no image has a score both times"),
    ],
)
def test_what_one_score_or_none_cannot_tell_is_none(before, mean, n, why):
    result = compare(np.array(before), np.array(before))
    assert result["before"] == {"mean": mean, "std": None, "n": n}
    assert (result["effect_size"], result["ci95"], result["undefined"]) == (None, None, why)


def test_the_standard_deviation_is_that_of_a_sample():
    assert sample_std(np.array([1.0, 3.0])) == pytest.approx(2**0.5)
    assert sample_std(np.full(64, 0.1)) == 0
    assert math.isnan(sample_std(np.array([1.0])))


def test_many_pairs_are_resampled_in_parts_to_the_same_interval(monkeypatch):
    random = np.random.default_rng(3)
    before, after = random.normal(0, 1, 64), random.normal(1, 1, 64)
    whole = compare(before, after)
    monkeypatch.setattr("trainer.runtime.statistics.AT_ONCE", 64 * 999)
    assert compare(before, after) == whole


def test_groups_are_those_of_equal_keys_however_long_they_are():
    found = groups(["a", "b\0", "a", "b"])
    assert {key: places.tolist() for key, places in found.items()} == {
        "a": [0, 2],
        "b\0": [1],
        "b": [3],
    }
