"""Charts as geometry: everything in percent of the plot, so that a page may stretch them.

x runs from 0 (left) to 100 (right) and y, as in SVG, from 0 (top) to 100 (bottom).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from salon.numbers import fixed, is_number, is_rounding, significant

BINS = 24
LABEL_GAP = 8.0  # percent of a plot's height below which two labels would touch


@dataclass(frozen=True)
class Axis:
    """A range of values, with the round ones in it: (position from its low end, label)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def spanning(
        cls, values: Sequence[float], ticks: int, *, snap: bool, whole: bool = False
    ) -> Self:
        """Hold all `values` with about `ticks` intervals; with `snap` it ends on round ones."""
        low, high = float(min(values)), float(max(values))
        if is_rounding(high - low, max(abs(low), abs(high))):
            margin = 0.5 if whole else abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        # Without 2.5 as a step no tick needs more digits than its step has.
        locator = MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1)
        marks = [float(mark) for mark in locator.tick_values(low, high)]
        step = marks[1] - marks[0]
        if snap:
            low, high = marks[0], marks[-1]
        decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        labels = {m: fixed(m, decimals) if decimals < 5 else significant(m, 2) for m in marks}
        inside = [mark for mark in marks if low <= mark <= high]
        return cls(low, high, tuple(((m - low) / (high - low) * 100, labels[m]) for m in inside))

    def along(self, value: float) -> float:
        """Percent of the way from low to high."""
        return (value - self.low) / (self.high - self.low) * 100


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name beside it, the name moved aside where two would touch."""

    kind: str
    y: float
    label_y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A value over iterations, with or without its spread."""

    line: str  # SVG path
    band: str  # SVG path, empty without spread
    x_axis: Axis
    y_axis: Axis
    points: list[tuple[float, float, str]]  # x, y, what to say there
    levels: list[Level]
    strands: list[tuple[str, str]]  # thin lines behind: name, SVG path


def curve(
    iterations: Sequence[int],
    means: Sequence[float | None],
    stds: Sequence[float | None] | None = None,
    levels: Sequence[tuple[str, float | None]] = (),
    from_zero: bool = False,
    strands: Mapping[str, Mapping[int, float]] | None = None,
    say: Callable[[float], str] | None = None,
) -> Curve | None:
    """A line through `means` with gaps where there is none; None without any finite value.

    Args:
        iterations: ascending.
        means: as many.
        stds: as many, for a band of one standard deviation to both sides.
        levels: (name, value) of horizontal lines, at most two.
        from_zero: whether 0 belongs to the y axis.
        strands: name -> value by iteration, of thin lines that belong to the same axes.
        say: writes a value, for readers; None: with as many digits as each one needs.
    """
    spreads = stds or [0.0] * len(means)
    rows = [
        (iteration, mean, spread if spread is not None and is_number(spread) else 0.0)
        for iteration, mean, spread in zip(iterations, means, spreads, strict=True)
        if mean is not None and is_number(mean)
    ]
    thin = {
        name: {i: value for i, value in strand.items() if is_number(value)}
        for name, strand in (strands or {}).items()
    }
    if not rows:
        return None
    heights = [value for _, value in levels if value is not None and is_number(value)]
    heights += [value for strand in thin.values() for value in strand.values()]
    heights += [mean + side * spread for _, mean, spread in rows for side in (-1, 1)]
    reached = [i for strand in thin.values() for i in strand]
    x_axis = Axis.spanning([rows[0][0], rows[-1][0], *reached], 6, snap=False, whole=True)
    y_axis = Axis.spanning(heights + [0.0] * from_zero, 4, snap=True)

    def at(iteration: int, value: float) -> tuple[float, float]:
        return round(x_axis.along(iteration), 2), round(100 - y_axis.along(value), 2)

    runs = _runs([row[0] for row in rows], iterations)
    parts = [rows[start:stop] for start, stop in runs]
    upper = [[at(i, mean + spread) for i, mean, spread in part] for part in parts]
    lower = [[at(i, mean - spread) for i, mean, spread in part] for part in parts]
    return Curve(
        line="".join(_path([at(i, mean) for i, mean, _ in part]) for part in parts),
        band="".join(
            _path(top + bottom[::-1]) + "Z" for top, bottom in zip(upper, lower, strict=True)
        )
        if stds
        else "",
        x_axis=x_axis,
        y_axis=y_axis,
        points=[
            (*at(i, mean), _say(i, mean, spread if stds else None, say)) for i, mean, spread in rows
        ],
        levels=_levels(levels, y_axis, say),
        strands=[
            (name, _path([at(i, value) for i, value in sorted(strand.items())]))
            for name, strand in thin.items()
            if strand
        ],
    )


def _runs(present: Sequence[int], iterations: Sequence[int]) -> list[tuple[int, int]]:
    """Where to cut the sequence `present` so that no part leaves out one of `iterations`."""
    place = {iteration: i for i, iteration in enumerate(iterations)}
    cuts = [i for i in range(1, len(present)) if place[present[i]] - place[present[i - 1]] > 1]
    return list(zip([0, *cuts], [*cuts, len(present)], strict=True))


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:
        points = [points[0], points[0]]  # a round cap makes a dot of a line without length
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _say(
    iteration: int, mean: float, spread: float | None, say: Callable[[float], str] | None
) -> str:
    around = "" if spread is None else f" ± {say(spread) if say else significant(spread, 2)}"
    return f"iteration {iteration}: {say(mean) if say else significant(mean, 3)}{around}"


def _levels(
    levels: Sequence[tuple[str, float | None]],
    axis: Axis,
    say: Callable[[float], str] | None,
) -> list[Level]:
    heights = [
        (100 - axis.along(value), kind, say(value) if say else significant(value, 3))
        for kind, value in levels
        if value is not None and is_number(value)
    ]
    heights.sort()
    apart = [0.0]
    if len(heights) == 2:
        nudge = max(0.0, LABEL_GAP - (heights[1][0] - heights[0][0])) / 2
        apart = [-nudge, nudge]
    return [
        Level(kind, round(y, 2), round(y + shift, 2), text)
        for (y, kind, text), shift in zip(heights, apart, strict=False)
    ]


@dataclass(frozen=True)
class Histogram:
    """How the scores of one evaluation lie."""

    kind: str
    bars: list[tuple[float, float, float, str]]  # left, width, height, what to say of it
    mean: float | None  # its position
    text: str


def histograms(
    samples: Sequence[tuple[str, NDArray[np.float64]]], decimals: int
) -> tuple[Axis, list[Histogram]] | None:
    """One histogram for each (name, scores [N]), all on one axis and to one scale of heights."""
    finite = [(kind, scores[np.isfinite(scores)]) for kind, scores in samples]
    together = np.concatenate([scores for _, scores in finite])
    if len(together) == 0:
        return None
    low, high = float(together.min()), float(together.max())
    if is_rounding(high - low, max(abs(low), abs(high))):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, BINS + 1)
    axis = Axis.spanning([low, high], 4, snap=False)
    counts = [np.histogram(scores, edges)[0] for _, scores in finite]
    tallest = max(int(count.max()) for count in counts)
    width = 100 / BINS
    rows = []
    for (kind, scores), count in zip(finite, counts, strict=True):
        mean = float(scores.mean()) if len(scores) else None
        bars = [
            (
                round(i * width, 2),
                round(width, 2),
                round(float(number) / tallest * 100, 2),
                f"{number} from {fixed(edges[i], decimals)} to {fixed(edges[i + 1], decimals)}",
            )
            for i, number in enumerate(count.tolist())
            if number
        ]
        position = None if mean is None else round(axis.along(mean), 2)
        rows.append(Histogram(kind, bars, position, fixed(mean, decimals)))
    return axis, rows
