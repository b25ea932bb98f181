"""One run of a study: train, evaluate at equal distances of reward queries, write down."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity.jury import Jury, load_jury
from benchmarks.fidelity.studies import STRIDE, STUDIES, Run
from trainer.algorithm import Algorithm
from trainer.ddpo.algorithm import DDPO
from trainer.diffusion import Diffusion
from trainer.evaluation import evaluate
from trainer.rwr.algorithm import RWR
from trainer.sections import EvaluationSpec
from trainer.spec import JobSpec


def perform(run: Run, samples: int) -> dict[str, Any]:
    """Train, and evaluate before it and after every `STRIDE` queries.

    Args:
        run: what to train.
        samples: images of each evaluation.

    Returns:
        `run`, `seconds`, `evaluations`: of each set of prompts, a list of queries, mean, std and,
        where asked for, kl.
    """
    spec, study = run.spec(), STUDIES[run.study]
    names = [reward.name for reward in spec.rewards]
    rewards = load_jury(names)
    training, evaluation = Jury(rewards), Jury(rewards)
    algorithm = _algorithm(spec, training, study.kl)
    prompts = {"held out": spec.evaluation.prompts}
    if study.seen:
        prompts["trained"] = spec.prompts
    sections = {
        name: EvaluationSpec(
            prompts=listed, samples=samples, batch_size=spec.evaluation.batch_size, kl=study.kl
        )
        for name, listed in prompts.items()
    }
    points: dict[str, list[dict[str, float]]] = {name: [] for name in sections}

    def take_stock() -> None:
        for name, section in sections.items():
            result = evaluate(algorithm, evaluation, section)
            scores = result.scores[names[0]]
            point = {"queries": training.queries, "mean": scores.mean(), "std": scores.std(ddof=1)}
            points[name].append({key: float(value) for key, value in point.items()})
            points[name][-1] |= result.measures

    start = time.perf_counter()
    take_stock()
    while training.queries < run.queries:
        algorithm.step()
        if training.queries % STRIDE == 0 or training.queries == run.queries:
            take_stock()
    return {
        "run": vars(run)
        | {"reward": names[0], "algorithm": spec.algorithm.model_dump(mode="json")},
        "evaluations": points,
        "samples": samples,
        "seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
    }


def _algorithm(spec: JobSpec, jury: Jury, kl: bool) -> Algorithm:
    diffusion = Diffusion.load(spec.model, "cuda" if torch.cuda.is_available() else "cpu")
    kind = DDPO if spec.algorithm.name == "ddpo" else RWR
    return kind(
        diffusion,
        spec.algorithm,
        spec.prompts,
        spec.rewards,
        jury,
        spec.seed,
        keep_reference=kl,
    )


def write(path: Path, result: dict[str, Any]) -> None:
    """Write `result` whole or not at all: a file that is there is a run that is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
