"""A study's runs as a table and a figure: means over seeds with 95 % intervals."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.fidelity.studies import WATCHED, Study
from salon.numbers import ABSENT, fixed, is_rounding

PROMPTS = ("trained", "held out")
Curves = dict[str, dict[str, dict[str, Any]]]
"""task -> line of a study -> seeds, queries [P], kl [P], clip_score [P] and, by set of prompts,
mean [P], half [P] and std_before."""


def read(folder: Path, study: Study, seeds: int) -> list[dict[str, Any]]:
    """The runs of a study that are done."""
    found = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        run = result["run"]
        mine = run["task"] in study.tasks and run["variant"] in study.lines.values()
        if mine and run["seed"] < seeds:
            found.append(result)
    return found


def summarise(study: Study, results: Sequence[Mapping[str, Any]]) -> Curves:
    """Per task and line, mean over seeds of the evaluation's mean at each number of queries.

    `half` is half the width of the 95 % interval of that mean by Student's t with seeds − 1 degrees
    of freedom; NaN for a single seed. `kl` and `clip_score` are means over seeds, of the prompts
    held out.
    """
    curves: Curves = {}
    for task in study.tasks:
        for label, variant in study.lines.items():
            runs = [r["evaluations"] for r in results if _is(r, task, variant)]
            if runs:
                curves.setdefault(task, {})[label] = _curve(runs)
    return curves


def _is(result: Mapping[str, Any], task: str, variant: str) -> bool:
    return bool(result["run"]["task"] == task and result["run"]["variant"] == variant)


def _curve(runs: Sequence[Mapping[str, Sequence[Mapping[str, float]]]]) -> dict[str, Any]:
    curve: dict[str, Any] = {
        "seeds": len(runs),
        "queries": [int(point["queries"]) for point in runs[0]["held out"]],
    }
    for name in ("kl", WATCHED):
        values = np.array([[point[name] for point in run["held out"]] for run in runs])
        curve[name] = values.mean(axis=0).tolist()
    for prompts in PROMPTS:
        means = np.array([[point["mean"] for point in run[prompts]] for run in runs])
        curve[prompts] = {
            "mean": means.mean(axis=0).tolist(),
            "half": _half_width(means).tolist(),
            # Before training all seeds have the same model, and the same images.
            "std_before": runs[0][prompts][0]["std"],
        }
    return curve


def _half_width(means: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    """Of the mean over rows of `means` [S, P]: t · s / √S, [P]."""
    count = len(means)
    if count < 2:
        return np.full(means.shape[1], np.nan)
    return stats.t.ppf(0.975, count - 1) * means.std(axis=0, ddof=1) / np.sqrt(count)


def table(curves: Curves) -> str:
    """Before and after as Markdown, and the difference in standard deviations of before."""
    lines = [
        f"| task | | seeds | trained prompts | effect | held out | effect | KL | {WATCHED} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, variants in curves.items():
        for line, curve in variants.items():
            watched = curve[WATCHED]
            cells = [
                *(task, line, str(curve["seeds"])),
                *(cell for prompts in PROMPTS for cell in _cells(curve[prompts])),
                *(f"{curve['kl'][-1]:.2f}", f"{watched[0]:.2f} → {watched[-1]:.2f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(curve: Mapping[str, Any]) -> tuple[str, str]:
    before, after, half = curve["mean"][0], curve["mean"][-1], curve["half"][-1]
    std = curve["std_before"]
    means = f"{fixed(before, 3)} → {fixed(after, 3)}"
    effect = ABSENT if is_rounding(std, before) else fixed((after - before) / std, 2, sign=True)
    if math.isnan(half):  # a single seed
        return means, effect
    spread = "" if effect == ABSENT else f" ± {fixed(half / std, 2)}"
    return f"{means} ± {fixed(half, 3)}", effect + spread


def draw(study: Study, curves: Curves, path: Path) -> None:
    """One panel a task: the reward against the queries spent on training."""
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (task, lines) in zip(panels, curves.items(), strict=True):
        for line, curve in lines.items():
            for prompts in study.prompts:
                points = curve[prompts]
                mean, half = np.array(points["mean"]), np.nan_to_num(np.array(points["half"]))
                label = f"{line}, {prompts} prompts" if len(study.prompts) > 1 else line
                axes.plot(curve["queries"], mean, marker="o", markersize=3, label=label)
                axes.fill_between(curve["queries"], mean - half, mean + half, alpha=0.2)
        axes.set_title(task)
        axes.set_xlabel("reward queries")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("reward, mean and 95 % interval over seeds")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
