"""Numbers for readers."""

import math

import pytest

from trainer.report.notation import decimals_for, duration, fixed, significant


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
