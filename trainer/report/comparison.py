"""Several finished runs on one page: what differs between them, and what they have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from salon import numbers
from salon.errors import InvalidRequest
from salon.numbers import decimals_for
from trainer.report.charts import Curve, curve
from trainer.report.data_uris import LARGEST_PICTURE, data_uris
from trainer.report.finished_run import Run
from trainer.report.page import render
from trainer.report.pictures import SMALL_PICTURE, spread_over
from trainer.report.results import MARKS, Verdict
from trainer.runtime.statistics import sample_std
from trainer.spec.dotted import dotted

PAIRS_SHOWN = 8
LONGEST = 60  # characters of a value of a spec


@dataclass(frozen=True)
class Row:
    """One run in the table of a reward."""

    run: str
    before: str
    after: str
    effect: str
    n: int
    outcome: Verdict


@dataclass(frozen=True)
class Section:
    """One reward over all runs."""

    reward: str
    trained: bool
    axis: str
    rows: list[Row]
    together: Row  # mean ± standard deviation over runs; n counts runs
    curve: Curve | None


@dataclass(frozen=True)
class Strip:
    """Pictures of one run."""

    run: str
    pairs: list[tuple[str, int, str, str]]  # prompt, seed, data URI before, after


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Write a page about the runs in `folders` to the file `out`, complete in itself.

    Raises:
        InvalidRequest: a folder holds no finished run, is named twice, or has other rewards.
        OSError: `out` cannot be written.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InvalidRequest("compare: a run folder is named twice")
    runs = [Run.read(folder) for folder in folders]
    rewards = [[(result.reward, result.trained) for result in run.results] for run in runs]
    for run, own in zip(runs, rewards, strict=True):
        if sorted(own) != sorted(rewards[0]):
            raise InvalidRequest(
                f"compare: the runs have different rewards: {runs[0].name} has "
                f"{_listed(rewards[0])}, {run.name} has {_listed(own)}"
            )
    differing, common = _specs(runs)
    strips = _strips(runs)
    size = runs[0].before.images.shape[1:3]
    page = render(
        "comparison.html.j2",
        runs=runs,
        title=_title(runs),
        differing=differing,
        sections=[_section(runs, name, trained) for name, trained in rewards[0]],
        strips=strips,
        size=size,
        pixelated=max(size) < SMALL_PICTURE,
        marks=MARKS,
        common=yaml.safe_dump(common, sort_keys=False, allow_unicode=True),
        largest=LARGEST_PICTURE,
    )
    out.write_text(page, encoding="utf-8")


def _listed(rewards: Sequence[tuple[str, bool]]) -> str:
    return ", ".join(name if trained else f"{name} (eval)" for name, trained in rewards)


def _title(runs: Sequence[Run]) -> str:
    names = {str(run.spec.get("name", "")) for run in runs}
    what = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    return f"{what} of {names.pop()}" if len(names) == 1 else what


def _specs(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str]]], dict[str, Any]]:
    """Keys whose values differ, with that of each run; and what all have in common."""
    flat = [dotted(run.spec) for run in runs]
    keys = list({key: None for spec in flat for key in spec})
    differing = [
        (key, [_shown(spec[key]) if key in spec else numbers.ABSENT for spec in flat])
        for key in keys
        if any(key not in spec or spec[key] != flat[0].get(key) for spec in flat)
    ]
    apart = {key for key, _ in differing}
    return differing, {key: value for key, value in flat[0].items() if key not in apart}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)}, e.g. {_shown(value[0])}" if value else "none"
    if isinstance(value, Mapping):  # a row of prompts
        value = value.get("prompt", value)
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _section(runs: Sequence[Run], reward: str, trained: bool) -> Section:
    results = [next(r for r in run.results if r.reward == reward) for run in runs]
    scale = next((r.before_std or r.after_std or r.before for r in results), None)
    # A mean of many scores, and of several runs, is known better than each of them.
    decimals, unit = decimals_for(scale) + 1, next((r.unit for r in results if r.unit), "")

    def level(mean: float | None, std: float | None) -> str:
        return numbers.mean_and_std(mean, std, decimals, unit)

    rows = [
        Row(
            run.name,
            level(result.before, result.before_std),
            level(result.after, result.after_std),
            result.effect,
            result.n,
            result.outcome,
        )
        for run, result in zip(runs, results, strict=True)
    ]
    effects = [r.effect_size for r in results if r.effect_size is not None]
    together = Row(
        f"mean ± std over {len(runs)} run{'s' * (len(runs) != 1)}",
        level(*_mean_and_std([r.before for r in results])),
        level(*_mean_and_std([r.after for r in results])),
        _effect(effects, len(runs)),
        len(runs),
        "same",
    )
    return Section(
        reward,
        trained,
        results[0].axis,
        rows,
        together,
        _curves(runs, f"rewards/{reward}/mean", decimals),
    )


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Over runs, with the standard deviation of a sample; None of what cannot be had."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    return (float(known.mean()) if len(known) else None), sample_std(known)


def _effect(effects: Sequence[float], count: int) -> str:
    if not effects:
        return "not defined"
    mean, std = _mean_and_std(effects)
    spread = f" ± {numbers.fixed(std, 2)}" if numbers.is_number(std) else ""
    of = f" ({len(effects)} of {count} runs)" if len(effects) < count else ""
    return f"{numbers.fixed(mean, 2, sign=True)}{spread}{of}"


def _curves(runs: Sequence[Run], metric: str, decimals: int) -> Curve | None:
    """A thin line for each run, and their mean where all of them have a value."""
    strands = {
        run.name: {
            entry["iteration"]: entry[metric]
            for entry in run.metrics
            if numbers.is_number(entry.get(metric))
        }
        for run in runs
    }
    shared = sorted(set.intersection(*(set(strand) for strand in strands.values())))
    means = [float(np.mean([strand[i] for strand in strands.values()])) for i in shared]
    return curve(shared, means, strands=strands, say=lambda value: numbers.fixed(value, decimals))


def _strips(runs: Sequence[Run]) -> list[Strip]:
    shown = [spread_over(run.before.prompts, PAIRS_SHOWN) for run in runs]
    pictures = [
        evaluation.images[i]
        for run, samples in zip(runs, shown, strict=True)
        for i in samples
        for evaluation in (run.before, run.after)
        if len(run.before.images) and len(run.after.images)
    ]
    sources = iter(data_uris(pictures)[0])
    return [
        Strip(
            run.name,
            [
                (run.before.prompts[i], run.before.seeds[i], next(sources), next(sources))
                for i in samples
                if len(run.before.images) and len(run.after.images)
            ],
        )
        for run, samples in zip(runs, shown, strict=True)
    ]
