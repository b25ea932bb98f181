"""Geometry of the charts, in percent of the plot."""

import math
import re

import numpy as np
import pytest

from trainer.report.charts import LABEL_GAP, Axis, curve, histograms


def numbers(path):
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


def test_an_axis_has_round_ticks_at_their_places():
    axis = Axis.spanning([0.13, 0.87], 4, snap=True)
    assert (axis.low, axis.high) == (0.0, 1.0)
    assert axis.ticks[1] == (pytest.approx(20), "0.2")
    assert axis.along(0.25) == pytest.approx(25)


def test_an_axis_that_is_not_snapped_ends_where_the_values_end():
    axis = Axis.spanning([1, 40], 6, snap=False, whole=True)
    assert (axis.low, axis.high) == (1, 40)
    assert [label for _, label in axis.ticks] == ["10", "20", "30", "40"]
    assert axis.ticks[-1][0] == 100


def test_tiny_values_get_powers_of_ten():
    assert Axis.spanning([0, 1e-7], 4, snap=True).ticks[-1][1] == "1×10⁻⁷"


def test_one_iteration_and_equal_values_still_have_axes():
    drawn = curve([1], [0.0], [0.0])
    assert [label for _, label in drawn.x_axis.ticks] == ["1"]
    assert drawn.points == [(50.0, 50.0, "iteration 1: 0 ± 0")]


def test_a_curve_and_its_band_keep_to_their_values():
    drawn = curve([1, 2, 3], [0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
    assert (drawn.y_axis.low, drawn.y_axis.high) == (0, 2)
    assert numbers(drawn.line) == [0, 100, 50, 50, 100, 0]
    assert numbers(drawn.band) == [0, 100, 50, 0, 100, 0, 100, 0, 50, 100, 0, 100]


def test_a_missing_value_is_a_gap_and_not_a_bridge():
    drawn = curve([1, 2, 3, 4, 5], [1.0, 2.0, math.nan, 2.0, 1.0])
    assert drawn.line.count("M") == 2
    assert [point[2].split(":")[0] for point in drawn.points] == [
        f"iteration {i}" for i in (1, 2, 4, 5)
    ]


def test_a_run_that_starts_late_has_no_gap():
    assert curve([11, 12, 13], [1.0, 2.0, 3.0]).line.count("M") == 1


@pytest.mark.parametrize("means", [[], [None, math.nan]])
def test_nothing_to_draw_is_none(means):
    assert curve(list(range(len(means))), means) is None


def test_the_names_of_close_levels_are_moved_apart_around_them():
    close = curve([1, 2], [0.0, 1.0], levels=[("before", 0.50), ("after", 0.51)]).levels
    far = curve([1, 2], [0.0, 1.0], levels=[("before", 0.2), ("after", 0.9)]).levels
    assert [level.kind for level in close] == ["after", "before"]
    assert close[1].label_y - close[0].label_y == pytest.approx(LABEL_GAP)
    assert all(level.y == level.label_y for level in far)


def test_levels_belong_to_the_axis_and_an_unknown_one_is_left_out():
    drawn = curve([1, 2], [0.0, 1.0], levels=[("before", -5.0), ("after", None)])
    assert [level.kind for level in drawn.levels] == ["before"]
    assert drawn.y_axis.low <= -5


def test_histograms_share_axis_and_scale_and_count_every_finite_score():
    before, after = np.array([0.0, 0.0, 0.0, np.nan]), np.array([1.0, 0.9, 0.1, 0.0])
    axis, rows = histograms([("before", before), ("after", after)], decimals=1)
    counts = [[int(bar[3].split()[0]) for bar in row.bars] for row in rows]
    assert [sum(count) for count in counts] == [3, 4]
    assert rows[0].bars[0][2] == 100
    assert rows[1].bars[0][2] == pytest.approx(100 / 3, abs=0.01)
    assert rows[1].mean == pytest.approx(axis.along(0.5))
    assert (rows[0].text, rows[1].text) == ("0.0", "0.5")


@pytest.mark.parametrize("values", [[0.3, 0.1 + 0.2], [1e17, 1e17], [0.0, 0.0]])
def test_scores_that_differ_by_rounding_alone_are_drawn_side_by_side(values):
    _, rows = histograms([("before", np.array(values)), ("after", np.array(values[:1]))], 2)
    counts = [sum(int(bar[3].split()[0]) for bar in row.bars) for row in rows]
    assert counts == [2, 1]
    assert [row.mean for row in rows] == [pytest.approx(50), pytest.approx(50)]


def test_scores_that_are_all_errors_have_no_histogram():
    errors = np.full(3, np.nan)
    assert histograms([("before", errors), ("after", errors)], 2) is None
