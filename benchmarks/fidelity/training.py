"""One run of a study: train, evaluate at equal distances of reward queries, write down."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity.jury import Jury, load_jury
from benchmarks.fidelity.studies import STRIDE, WATCHED, Run
from salon.numbers import finite
from trainer.algorithm import Algorithm
from trainer.ddpo.algorithm import DDPO
from trainer.denoising.job import DenoisingJob
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.evaluation.held_out import evaluate
from trainer.rwr.algorithm import RWR
from trainer.spec.sections import EvaluationSpec


def perform(run: Run, samples: int) -> dict[str, Any]:
    """Train, and evaluate before it and after every `STRIDE` queries.

    Args:
        run: what to train.
        samples: images of each evaluation.

    Returns:
        `run`, `seconds`, `evaluations`: of the prompts held out and of those trained on, with seeds
        that training never draws, a list of queries, mean and std; of those held out, also `kl`
        from the base model and the mean `clip_score`, which training does not see.
    """
    spec = run.spec()
    reward = spec.rewards[0].name
    rewards = load_jury([reward, WATCHED])
    training = Jury({reward: rewards[reward]})
    algorithm = _algorithm(spec, training)
    sections = {
        name: EvaluationSpec(
            prompts=prompts,
            samples=samples,
            batch_size=spec.evaluation.batch_size,
            kl=name == "held out",
        )
        for name, prompts in (("held out", spec.evaluation.prompts), ("trained", spec.prompts))
    }
    points: dict[str, list[dict[str, float]]] = {name: [] for name in sections}

    def take_stock() -> None:
        for name, section in sections.items():
            asked = rewards if name == "held out" else {reward: rewards[reward]}
            result = evaluate(algorithm, Jury(asked), section)
            scores = result.scores[reward]
            point = {"queries": training.queries, "mean": scores.mean(), "std": scores.std(ddof=1)}
            if WATCHED in asked:
                point[WATCHED] = result.scores[WATCHED].mean()
            points[name].append({key: float(value) for key, value in point.items()})
            points[name][-1] |= result.measures

    start = time.perf_counter()
    take_stock()
    while training.queries < run.queries:
        algorithm.step()
        if training.queries % STRIDE == 0 or training.queries == run.queries:
            take_stock()
    return {
        "run": vars(run),
        "reward": reward,
        "algorithm": spec.algorithm.model_dump(mode="json"),
        "evaluations": points,
        "samples": samples,
        "seconds": time.perf_counter() - start,
    }


def _algorithm(spec: DenoisingJob, jury: Jury) -> Algorithm:
    diffusion = Diffusion.load(spec.model, "cuda" if torch.cuda.is_available() else "cpu")
    kind = DDPO if spec.algorithm.name == "ddpo" else RWR
    return kind(
        diffusion,
        spec.algorithm,
        spec.prompts,
        spec.rewards,
        jury,
        spec.seed,
        keep_reference=True,
    )


def write(path: Path, result: dict[str, Any]) -> None:
    """Write `result` whole or not at all: a file that is there is a run that is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(finite(result), indent=1) + "\n", encoding="utf-8")
    part.replace(path)
