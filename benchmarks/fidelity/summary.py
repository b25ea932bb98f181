"""A study's runs as a table and a figure: means over seeds with 95 % intervals."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

Curves = dict[str, dict[str, dict[str, Any]]]
"""task -> line -> queries [P], mean [P], half [P], seeds."""


def read(folder: Path) -> list[dict[str, Any]]:
    """All runs that are done."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def summarise(results: Sequence[Mapping[str, Any]]) -> Curves:
    """Per task and variant, mean over seeds of the evaluation's mean at each number of queries.

    `half` is half the width of the 95 % interval of that mean by Student's t with seeds − 1 degrees
    of freedom; NaN for a single seed. Where a study evaluates on several sets of prompts, each is a
    line of its own.
    """
    groups: dict[tuple[str, str], list[list[dict[str, float]]]] = defaultdict(list)
    for result in results:
        run = result["run"]
        several = len(result["evaluations"]) > 1
        for prompts, points in result["evaluations"].items():
            line = f"{run['variant']}, {prompts} prompts" if several else run["variant"]
            groups[run["task"], line].append(points)
    curves: Curves = defaultdict(dict)
    for (task, line), runs in groups.items():
        means = np.array([[point["mean"] for point in points] for points in runs])
        half = _half_width(means)
        curves[task][line] = {
            "queries": [int(point["queries"]) for point in runs[0]],
            "mean": means.mean(axis=0).tolist(),
            "half": half.tolist(),
            "seeds": len(runs),
            # Before training all seeds have the same model, and the same images.
            "std_before": runs[0][0]["std"],
        }
    return dict(curves)


def _half_width(means: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    """Of the mean over rows of `means` [S, P]: t · s / √S, [P]."""
    count = len(means)
    if count < 2:
        return np.full(means.shape[1], np.nan)
    return stats.t.ppf(0.975, count - 1) * means.std(axis=0, ddof=1) / np.sqrt(count)


def table(curves: Curves, title: str) -> Table:
    """Before and after, and the difference in standard deviations of the samples before."""
    result = Table(title=title)
    for column in ("task", "", "seeds", "queries", "before", "after, 95 % interval", "effect"):
        result.add_column(column, justify="left" if column in ("task", "") else "right")
    for task, lines in curves.items():
        for line, curve in lines.items():
            before, after = curve["mean"][0], curve["mean"][-1]
            result.add_row(
                *(task, line, str(curve["seeds"]), str(curve["queries"][-1]), f"{before:.4f}"),
                f"{after:.4f} ± {curve['half'][-1]:.4f}",
                f"{(after - before) / curve['std_before']:+.2f}",
            )
        result.add_section()
    return result


def draw(curves: Curves, path: Path) -> None:
    """One panel a task: the held-out reward against the queries spent on training."""
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (task, lines) in zip(panels, curves.items(), strict=True):
        for line, curve in lines.items():
            mean, half = np.array(curve["mean"]), np.nan_to_num(np.array(curve["half"]))
            axes.plot(curve["queries"], mean, marker="o", markersize=3, label=line)
            axes.fill_between(curve["queries"], mean - half, mean + half, alpha=0.2)
        axes.set_title(task)
        axes.set_xlabel("reward queries")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("reward, mean and 95 % interval over seeds")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
