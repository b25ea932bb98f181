"""Which runs a study is made of, as job specs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.denoising.job import DenoisingJob
from trainer.spec.job_spec import class_of
from trainer.spec.sections import submitting

JOBS = Path("jobs")
TASKS = ("compressibility", "incompressibility", "aesthetic", "alignment")
SAMPLER = ("sampling_steps", "guidance_scale", "eta", "scheduler")
STRIDE = 1280
"""Queries between two evaluations: whole iterations of all tiny jobs, whose samples divide it."""

WATCHED = "clip_score"
"""A reward that no study trains on: it falls where images stop showing what the prompt says."""


@dataclass(frozen=True)
class Variant:
    """One way to train: a task's tiny job with changes in its `algorithm` section."""

    algorithm: Mapping[str, Any] = field(default_factory=dict)
    job: str = "ddpo"
    without: str = ""
    """A key of the section to leave out."""

    def applied(self, task: str) -> dict[str, Any]:
        """The job of `task` with the changes; all variants sample as its DDPO job does."""
        job = _tiny_job(self.job, task)
        sampler = {k: v for k, v in _tiny_job("ddpo", task)["algorithm"].items() if k in SAMPLER}
        own = {k: v for k, v in job["algorithm"].items() if k not in SAMPLER and k != self.without}
        return {**job, "algorithm": {**own, **sampler, **self.algorithm}}


def _tiny_job(algorithm: str, task: str) -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(
        (JOBS / f"{algorithm}-{task}-tiny.yaml").read_text(encoding="utf-8")
    )
    return job


VARIANTS: dict[str, Variant] = {
    "DDPO-IS": Variant(),
    "DDPO-SF": Variant({"estimator": "score_function", "updates_per_iteration": 1}),
    "RWR": Variant(job="rwr"),
    # As in jobs/rwr-sparse-compressibility-tiny.yaml, which says why.
    "RWR-sparse": Variant(
        {"weighting": "sparse", "percentile": 0.75, "epochs": 24}, "rwr", "inverse_temperature"
    ),
    # All samples count alike: what regression onto own samples does without any reward.
    "unweighted": Variant({"inverse_temperature": 0.0}, "rwr"),
    "guidance 1": Variant({"guidance_scale": 1.0}),
    "global": Variant({"advantages": "global"}),
    "clip 0.001": Variant({"clip_range": 1e-3}),
    "clip 0.1": Variant({"clip_range": 0.1}),
    "kl 0.01": Variant({"kl_weight": 0.01}),
    "kl 0.1": Variant({"kl_weight": 0.1}),
    "kl 1": Variant({"kl_weight": 1.0}),
}


@dataclass(frozen=True)
class Study:
    """Variants that are compared on each of its tasks, with the same seeds and queries."""

    lines: Mapping[str, str]
    """What a variant is called in this study -> its name. Studies share the runs of a variant."""
    tasks: tuple[str, ...]
    prompts: tuple[str, ...] = ("trained",)
    """Whose rewards the figure shows; the table has both."""


STUDIES: dict[str, Study] = {
    "algorithms": Study(
        {name: name for name in ("DDPO-IS", "DDPO-SF", "RWR", "RWR-sparse", "unweighted")}, TASKS
    ),
    "generalisation": Study({"DDPO-IS": "DDPO-IS"}, TASKS, ("trained", "held out")),
    "guidance": Study({"guidance 1": "guidance 1", "guidance 2": "DDPO-IS"}, TASKS[::2]),
    "advantages": Study({"per_prompt": "DDPO-IS", "global": "global"}, TASKS[::2]),
    "clipping": Study(
        {"clip 0.001": "clip 0.001", "clip 0.01": "DDPO-IS", "clip 0.1": "clip 0.1"},
        TASKS[::2],
    ),
    "kl": Study(
        {"kl 0": "DDPO-IS"} | {name: name for name in ("kl 0.01", "kl 0.1", "kl 1")}, TASKS[::2]
    ),
}


@dataclass(frozen=True)
class Run:
    """One training, of one or several studies."""

    task: str
    variant: str
    seed: int
    queries: int

    @property
    def key(self) -> str:
        """Names the run's file."""
        return "-".join([self.task, self.variant.lower().replace(" ", ""), str(self.seed)])

    def spec(self) -> DenoisingJob:
        """The job, with as many iterations as `queries` rewards pay for.

        Raises:
            ValueError: the queries are no whole number of iterations.
        """
        job = VARIANTS[self.variant].applied(self.task)
        samples = job["algorithm"]["samples_per_iteration"]
        if self.queries % samples:
            raise ValueError(
                f"{self.queries} queries are no whole number of iterations of {samples} samples"
            )
        job |= {"seed": self.seed, "iterations": self.queries // samples}
        return class_of(job).model_validate(job, context=submitting([Path.cwd()]))


def runs_of(study: str, seeds: int, queries: int) -> list[Run]:
    """All runs of a study: every variant on every task, seed by seed."""
    return [
        Run(task, variant, seed, queries)
        for seed in range(seeds)
        for task in STUDIES[study].tasks
        for variant in STUDIES[study].lines.values()
    ]
