"""`report.html`: everything the template shows, computed; the template only lays it out."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from salon.numbers import duration, fixed, plain, significant
from trainer.evaluation.held_out import Evaluation
from trainer.report.charts import Axis, Curve, Histogram, curve, histograms
from trainer.report.data_uris import LARGEST_PICTURE, WEBP_QUALITY, data_uris
from trainer.report.pictures import SMALL_PICTURE, spread_over
from trainer.report.results import MARKS, NORMALIZATIONS, Result, Verdict
from trainer.report.watch import notes, watched
from trainer.spec.job_spec import JobSpec
from trainer.spec.rewarded_job import RewardedJob

PAIRS_SHOWN = 64
PAIRS_OPEN = 16

_WAITING = "Waiting for rewards"
_OF_THE_LOOP = (
    *("iteration", "time", "samples", "seconds"),
    *("samples_per_second", "reward_wait_seconds", "reward_wait_fraction"),
)
"""What every iteration has, whatever its algorithm."""
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shot:
    """One picture with its scores."""

    source: str  # data URI
    scores: list[tuple[str, str, Verdict]]  # reward, score, how it is beside the one before


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed, before and after."""

    prompt: str
    seed: int
    before: Shot
    after: Shot


@dataclass(frozen=True)
class Section:
    """One reward: its curve in training, and how its scores lie before and after."""

    result: Result
    curve: Curve | None
    distribution: tuple[Axis, list[Histogram]] | None


def render_page(
    spec: RewardedJob,
    summary: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The page as HTML, complete in itself: no request, whatever it is asked to show."""
    results = Result.all_of(summary)
    pairs, lossy = _pairs(results, before, after)
    size = before.images.shape[1:3]
    return render(
        "report.html.j2",
        spec=spec,
        summary=summary,
        results=results,
        facts=_facts(summary),
        pairs_open=pairs[:PAIRS_OPEN],
        pairs_folded=pairs[PAIRS_OPEN:],
        marks=MARKS,
        shown=len(pairs),
        evaluated=len(before.prompts),
        size=size,
        reduced=LARGEST_PICTURE if max(size) > LARGEST_PICTURE else None,
        lossy=WEBP_QUALITY if lossy else None,
        pixelated=max(size) < SMALL_PICTURE,
        normalizations=NORMALIZATIONS,
        weights={reward.name: plain(reward.weight) for reward in spec.rewards},
        total=_total(spec, metrics),
        sections=[_section(result, before, after, metrics) for result in results],
        notes=notes(summary, spec.iterations),
        watched=watched(summary),
        health=_health(spec, metrics),
        resolved=yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def render_progress(
    spec: JobSpec, summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> str:
    """The page of a run that evaluated nothing: what its iterations measured."""
    known = {*_OF_THE_LOOP, *spec.health}
    names = dict.fromkeys(name for entry in metrics for name in entry)
    curves = [(name, _series(metrics, name)) for name in names if name not in known]
    return render(
        "progress.html.j2",
        spec=spec,
        summary=summary,
        facts=[fact for fact in _facts(summary) if fact[0] != _WAITING],
        curves=[(name, drawn) for name, drawn in curves if drawn is not None],
        health=_health(spec, metrics),
        resolved=yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def render(template: str, **shown: Any) -> str:
    """A page that is complete in itself: its policy allows its one script, and no request."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script_digest=digest, **shown)


def _total(spec: RewardedJob, metrics: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The curve of a sum of several rewards; once normalised its mean is 0 in every iteration."""
    if len(spec.rewards) == 1 or any(reward.normalize != "none" for reward in spec.rewards):
        return None
    return _series(metrics, "reward_mean", "reward_std")


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Iterations", f"{summary['iterations']:,}"),
        ("Samples", f"{summary['samples']:,}"),
        ("Training time", duration(summary["seconds"])),
        ("Samples per second", significant(summary["samples_per_second"])),
        (_WAITING, f"{fixed(100 * summary['reward_wait_fraction'], 1)} %"),
    ]


def _pairs(
    results: Sequence[Result], before: Evaluation, after: Evaluation
) -> tuple[list[Pair], bool]:
    """Pairs of all prompts, and whether their pictures lost something to make the page smaller.

    The first `PAIRS_OPEN` are spread over the prompts by themselves.
    """
    shown = spread_over(before.prompts, PAIRS_SHOWN)
    first = [shown[k] for k in spread_over([before.prompts[i] for i in shown], PAIRS_OPEN)]
    shown = first + [i for i in shown if i not in first]
    sources, lossy = data_uris([*before.images[shown], *after.images[shown]])

    def shot(evaluation: Evaluation, i: int, source: str) -> Shot:
        scores = []
        for result in results:
            was = float(before.scores[result.reward][i])
            score = float(evaluation.scores[result.reward][i])
            scores.append((result.reward, result.score(score), result.verdict(was, score)))
        return Shot(source, scores)

    pairs = [
        Pair(
            before.prompts[i],
            before.seeds[i],
            shot(before, i, sources[place]),
            shot(after, i, sources[len(shown) + place]),
        )
        for place, i in enumerate(shown)
    ]
    return pairs, lossy


def _section(
    result: Result, before: Evaluation, after: Evaluation, metrics: Sequence[Mapping[str, Any]]
) -> Section:
    name = result.reward
    levels = [("before", result.before), ("after", result.after)]
    scores = [("before", before.scores[name]), ("after", after.scores[name])]
    return Section(
        result,
        _series(metrics, f"rewards/{name}/mean", f"rewards/{name}/std", levels, result.number),
        histograms(scores, result.decimals),
    )


def _series(
    metrics: Sequence[Mapping[str, Any]],
    mean: str,
    std: str | None = None,
    levels: Sequence[tuple[str, float | None]] = (),
    say: Callable[[float], str] | None = None,
) -> Curve | None:
    """The curve of a metric over iterations; None where no iteration has it."""
    return curve(
        [entry["iteration"] for entry in metrics],
        [entry.get(mean) for entry in metrics],
        [entry.get(std) for entry in metrics] if std else None,
        levels,
        from_zero=std is None,
        say=say,
    )


def _health(spec: JobSpec, metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Curve]]:
    curves = [(name, meaning, _series(metrics, name)) for name, meaning in spec.health.items()]
    return [(name, meaning, drawn) for name, meaning, drawn in curves if drawn is not None]
