"""Numbers for readers."""

import math

import pytest

from salon.numbers import (
    decimals_for,
    duration,
    effect,
    finite,
    fixed,
    is_rounding,
    mean_and_std,
    plain,
    score,
    significant,
)


@pytest.mark.parametrize(
    ("scale", "decimals"), [(0.1, 2), (0.056, 3), (4.2, 1), (37.0, 0), (1e-9, 6), (0, 2), (None, 2)]
)
def test_decimals_show_two_digits_of_the_spread(scale, decimals):
    assert decimals_for(scale) == decimals


def test_fixed():
    assert fixed(-1234.567, 2) == "−1,234.57"
    assert fixed(0.5, 2, sign=True) == "+0.50"
    assert fixed(-0.001, 2) == "0.00", "zero has no sign"
    assert fixed(math.nan, 2) == fixed(None, 2) == fixed(math.inf, 2) == "—"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (-25.04, "−25.0"),
        (12345.6, "12,346"),
        (1.234e-7, "1.23×10⁻⁷"),
        (-2e9, "−2×10⁹"),
        (math.nan, "—"),
    ],
)
def test_significant(value, text):
    assert significant(value, 3) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (18420, "5 h 7 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_score_has_its_unit_and_an_error_has_none():
    assert score(-38.214, 1, "kB") == "−38.2 kB"
    assert score(0.312, 2) == "0.31"
    assert score(math.nan, 1, "kB") == "—"


def test_mean_and_standard_deviation_have_the_same_decimals():
    assert mean_and_std(-38.214, 1.0, 1, "kB") == "−38.2 ± 1.0 kB"
    assert mean_and_std(-38.214, None, 1, "kB") == "−38.2 kB", "of a single score"
    assert mean_and_std(None, None, 1, "kB") == "—"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((2.314, (1.98, 2.7), None), "+2.31 [1.98, 2.70]"),
        ((-0.5, [-0.751, 0.001], None), "−0.50 [−0.75, 0.00]"),
        ((3.0, None, "3 images are fewer"), "+3.00, without an interval (3 images are fewer)"),
        ((None, None, "they do not differ"), "not defined (they do not differ)"),
        ((None, None), "not defined"),
    ],
)
def test_an_effect_has_its_interval_or_says_why_not(found, text):
    assert effect(*found) == text


def test_a_weight_is_as_short_as_people_write_it():
    assert [plain(weight) for weight in (1.0, -0.5, 2.25)] == ["1", "−0.5", "2.25"]


def test_what_is_rounding_depends_on_how_large_the_numbers_are():
    assert is_rounding(0.0, 0.0)
    assert is_rounding(1e-17, 0.1)
    assert is_rounding(0.1, -1e6)
    assert not is_rounding(1e-17, 0.0)
    assert not is_rounding(1e-6, 1.0)


def test_json_has_null_for_what_is_not_finite():
    value = {"a": math.nan, "b": [1.0, -math.inf, "nan"], "c": {"d": (2, None, True)}}
    assert finite(value) == {"a": None, "b": [1.0, None, "nan"], "c": {"d": [2, None, True]}}
