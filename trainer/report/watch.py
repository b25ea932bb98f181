"""What evaluations during training found: curves, the rule that stopped it, the best model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salon.numbers import significant
from trainer.report.charts import Curve, curve
from trainer.report.results import Result

MEANINGS = {
    "eval/diversity": "mean pairwise cosine distance of the images' CLIP embeddings",
    "eval/kl": "divergence from the base model, mean over steps and dimensions, in nats",
}
ROWS = 12


@dataclass(frozen=True)
class Watched:
    """One metric over all evaluations."""

    metric: str
    meaning: str
    curve: Curve
    axis: str  # what to write along its values; empty where the meaning says it


def watched(summary: Mapping[str, Any]) -> list[Watched]:
    """A curve for each metric; none of rewards that were only evaluated before and after."""
    history = summary["evaluations"]
    iterations = [entry["iteration"] for entry in history]
    results = _by_metric(summary)
    curves = []
    for metric in _metrics(history):
        if metric not in MEANINGS and len(history) < 3:
            continue
        result = results.get(metric)
        spread = f"{metric.removesuffix('/mean')}/std"
        drawn = curve(
            iterations,
            [entry.get(metric) for entry in history],
            [entry.get(spread) for entry in history] if result else None,
            from_zero=result is None,
            say=result.number if result else None,
        )
        if drawn is not None:
            meaning = MEANINGS.get(metric, "mean and ± 1 standard deviation of the same images")
            curves.append(Watched(metric, meaning, drawn, result.axis if result else ""))
    return curves


def notes(summary: Mapping[str, Any], iterations: int) -> list[str]:
    """Sentences on stand-ins, on the rule that stopped the training, and on the best model.

    Args:
        summary: the content of `summary.json`.
        iterations: how many the job asked for.
    """
    sentences = []
    if stand_ins := summary.get("stand_ins"):
        sentences.append(
            f"Scored by stand-in rewards: {', '.join(stand_ins)}. Small models answered in place "
            "of the real ones, so these scores are for trying things out."
        )
    if stop := summary["stop"]:
        values = ", ".join(written(summary, stop["metric"], value) for value in stop["values"])
        highest = written(summary, stop["metric"], stop["highest"])
        higher = f" (the highest was {highest})" if stop["highest"] > max(stop["values"]) else ""
        sentences.append(
            f"Stopped after iteration {stop['iteration']} of {iterations}, because {stop['rule']}: "
            f"{values}{higher}."
        )
    if best := summary["best"]:
        last = best["iteration"] == summary["iterations"]
        where = "the last one" if last else f"after iteration {best['iteration']}"
        value = written(summary, best["metric"], best["value"])
        sentences.append(
            f"The model with the highest {best['metric']}, {value} ({where}), is kept in best/."
        )
    return sentences


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all metrics over evaluations, at most `ROWS` of them, evenly chosen."""
    history = summary["evaluations"]
    metrics = _metrics(history)
    count = min(ROWS, len(history))
    chosen = sorted({round(i * (len(history) - 1) / max(1, count - 1)) for i in range(count)})
    rows = [
        [
            str(history[i]["iteration"]),
            *(written(summary, name, history[i].get(name)) for name in metrics),
        ]
        for i in chosen
    ]
    return ["iteration", *metrics], rows


def written(summary: Mapping[str, Any], metric: str, value: float | None) -> str:
    """A value of a metric: a score as everywhere else, any other with three digits."""
    result = _by_metric(summary).get(metric)
    return result.score(value) if result else significant(value)


def _by_metric(summary: Mapping[str, Any]) -> dict[str, Result]:
    return {f"eval/{result.reward}/mean": result for result in Result.all_of(summary)}


def _metrics(history: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name: None for entry in history for name in entry}
    return [name for name in names if name != "iteration" and not name.endswith("/std")]
