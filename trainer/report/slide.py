"""`report.png`: the result as one picture for a slide, 1920 x 1080 pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from salon.numbers import duration, is_rounding
from trainer.evaluation.held_out import Evaluation
from trainer.report.pictures import COLOURS, POINTS_PER_INCH, Box, draw_pictures, write
from trainer.report.results import MARKS, Result

WIDTH, HEIGHT, MARGIN = 16.0, 9.0, 0.5  # inches
GUTTER = 1.8  # inches to the right of a curve, for the names of its levels
PICTURES_SHOWN, COLUMNS = 16, 4
REWARDS_SHOWN = 4  # with more the curves and the scores under the pictures leave no room
INK, QUIET, RULE, WARNING = "#1c1b19", "#66625b", "#e2ded6", "#a3341f"
CHANGED = (
    "Warning: a reward scored as another version after training than before; that difference is "
    "not the effect of training alone (report.html names it)"
)


def draw_slide(
    summary: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    metrics: Sequence[Mapping[str, Any]],
) -> Figure:
    """Headline; some prompts before and after; the curve of each reward in training.

    Of many rewards the first few, those of training before those of evaluation alone.
    """
    results = Result.all_of(summary)[:REWARDS_SHOWN]
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=120, facecolor="white")
    top = _headline(figure, summary, results) + 0.45
    height = HEIGHT - top - 0.3
    left = MARGIN
    kinds: tuple[Literal["before", "after"], ...] = ("before", "after")
    for kind in kinds:
        write(figure, left, top - 0.38, f"{kind.capitalize()} training", 15, COLOURS[kind], "bold")
        box = Box(left, top, 4.8, height)
        pair = (before, after)
        left += draw_pictures(figure, box, pair, kind, results, PICTURES_SHOWN, COLUMNS) + 0.4
    left += 0.45
    write(figure, left - 0.1, top - 0.38, "Reward in training, mean ± std", 15, INK, "bold")
    trained = [result for result in results if result.trained]
    each = (height + 0.1) / len(trained)
    for i, result in enumerate(trained):
        title = 0.3 if len(results) > 1 else 0.0
        box = Box(left, top + i * each + title, WIDTH - left - GUTTER, each - title - 0.6)
        _draw_curve(figure.add_axes(box.fractions(figure)), result, metrics)
        if title:
            write(figure, left, box.top - 0.27, result.reward, 12, INK)
    return figure


def _headline(figure: Figure, summary: Mapping[str, Any], results: Sequence[Result]) -> float:
    """Write it at the top; returns how far down it reaches, in inches."""
    top = 0.4
    single = len(results) == 1
    for result in results:
        claim = f"{result.label} {result.change}"
        size = min(36.0, 1500 / len(claim)) if single else min(22.0, 1200 / len(claim))
        write(figure, MARGIN, top, claim, size, INK)
        effect = f"{MARKS[result.outcome]} effect size {result.effect} on {result.n} images".strip()
        colour = COLOURS[result.outcome]
        if single:
            top += size * 1.4 / POINTS_PER_INCH
            write(figure, MARGIN, top, f"{effect} of held-out prompts", 18, colour, "bold")
        else:
            write(figure, 9.6, top + 0.04, effect, min(16.0, 750 / len(effect)), colour, "bold")
        top += 0.42
    iterations = summary["iterations"]
    rewards = ", ".join(result.reward for result in results)
    if more := len(summary["rewards"]) + len(summary["eval_rewards"]) - len(results):
        rewards += f" ({more} more in report.html)"
    facts = (
        f"{summary['algorithm'].upper()} · {iterations:,} iteration{'s' * (iterations != 1)} · "
        f"{summary['samples']:,} samples · {duration(summary['seconds'])} · same prompts and seeds "
        f"before and after, under each picture its {rewards}"
    )
    write(figure, MARGIN, top, facts, min(12.5, 1900 / len(facts)), QUIET)
    if summary["warnings"]:
        top += 0.25
        write(figure, MARGIN, top, CHANGED, 12.5, WARNING, "bold")
    return top + 0.3


def _draw_curve(axes: Axes, result: Result, metrics: Sequence[Mapping[str, Any]]) -> None:
    def column(key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        values = [entry.get(key) for entry in metrics]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    iterations = [entry["iteration"] for entry in metrics]
    mean = column(f"rewards/{result.reward}/mean")
    std = np.nan_to_num(column(f"rewards/{result.reward}/std"))
    marker = "o" if len(metrics) == 1 else ""
    known = sorted(
        (value, kind)
        for kind, value in (("before", result.before), ("after", result.after))
        if value is not None
    )
    heights = np.array([*(mean - std), *(mean + std), *(value for value, _ in known)])
    heights = heights[np.isfinite(heights)]
    if len(heights) and is_rounding(np.ptp(heights), np.abs(heights).max()):
        # matplotlib would blow rounding up to the height of the chart.
        margin = abs(float(heights[0])) * 0.1 or 1.0
        axes.set_ylim(heights[0] - margin, heights[0] + margin)
    axes.fill_between(iterations, mean - std, mean + std, color=COLOURS["after"], alpha=0.15, lw=0)
    axes.plot(iterations, mean, color=COLOURS["after"], lw=2.5, marker=marker)
    for (value, kind), side in zip(known, ("top", "bottom"), strict=False):
        axes.axhline(value, color=COLOURS[kind], lw=1.3, ls=(0, (5, 4)))
        # The lower name hangs below its line and the upper stands on it: they cannot touch.
        axes.annotate(
            f"{kind} {result.score(value)}", (1.02, value), xycoords=("axes fraction", "data"),
            size=12, color=COLOURS[kind], va=side, weight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel("iteration", size=11, color=QUIET)
    axes.set_ylabel(result.axis, size=11, color=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(colors=QUIET, labelsize=11, length=0)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
