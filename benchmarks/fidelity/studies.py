"""Which runs a study is made of, as job specs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.sections import SUBMITTING
from trainer.spec import JobSpec

JOBS = Path("jobs")
TASKS = ("compressibility", "incompressibility", "aesthetic", "alignment")
SAMPLER = ("sampling_steps", "guidance_scale", "eta", "scheduler")
KL_WEIGHTS = (0.0, 0.01, 0.1, 1.0)
STRIDE = 768
"""Queries between two evaluations: whole iterations of all tiny jobs, whose samples divide it."""


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


@dataclass(frozen=True)
class Study:
    """Variants that are compared on each of its tasks, with the same seeds and queries."""

    variants: Mapping[str, Variant]
    tasks: tuple[str, ...]
    seen: bool = False
    """Whether to evaluate on the training prompts, too, with seeds that training never draws."""
    kl: bool = False
    """Whether to evaluate the divergence from the base model, too."""


STUDIES: dict[str, Study] = {
    "algorithms": Study(
        {
            "DDPO-IS": Variant(),
            "DDPO-SF": Variant({"estimator": "score_function", "updates_per_iteration": 1}),
            "RWR": Variant(job="rwr"),
            # As in jobs/rwr-sparse-compressibility-tiny.yaml, which says why.
            "RWR-sparse": Variant(
                {"weighting": "sparse", "percentile": 0.75, "epochs": 24},
                "rwr",
                "inverse_temperature",
            ),
        },
        TASKS,
    ),
    "generalisation": Study({"DDPO-IS": Variant()}, TASKS, seen=True),
    "guidance": Study(
        {f"guidance {scale}": Variant({"guidance_scale": scale}) for scale in (5, 1)},
        ("compressibility", "aesthetic"),
    ),
    "advantages": Study(
        {way: Variant({"advantages": way}) for way in ("per_prompt", "group", "global")},
        ("compressibility", "aesthetic"),
    ),
    "clipping": Study(
        {f"clip {width:g}": Variant({"clip_range": width}) for width in (2e-4, 2e-3, 2e-2, 0.2)},
        ("compressibility", "aesthetic"),
    ),
    "kl": Study(
        {f"kl {weight:g}": Variant({"kl_weight": weight}) for weight in KL_WEIGHTS},
        ("compressibility", "aesthetic"),
        kl=True,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    study: str
    task: str
    variant: str
    seed: int
    queries: int

    @property
    def key(self) -> str:
        """Names the run's file."""
        return "-".join([self.task, self.variant.lower().replace(" ", ""), str(self.seed)])

    def spec(self) -> JobSpec:
        """The job, with as many iterations as `queries` rewards pay for.

        Raises:
            ValueError: the queries are no whole number of iterations.
        """
        job = STUDIES[self.study].variants[self.variant].applied(self.task)
        samples = job["algorithm"]["samples_per_iteration"]
        if self.queries % samples:
            raise ValueError(
                f"{self.queries} queries are no whole number of iterations of {samples} samples"
            )
        job |= {"seed": self.seed, "iterations": self.queries // samples}
        return JobSpec.model_validate(job, context=SUBMITTING)


def runs_of(study: str, seeds: int, queries: int) -> list[Run]:
    """All runs of a study: every variant on every task, seed by seed."""
    return [
        Run(study, task, variant, seed, queries)
        for seed in range(seeds)
        for task in STUDIES[study].tasks
        for variant in STUDIES[study].variants
    ]
