"""Images of prompts and seeds that training never uses, scored; and before against after."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from trainer.algorithm import Algorithm, Metrics
from trainer.diversity import ImageEmbedder, mean_pairwise_distance
from trainer.run_folder import RunFolder
from trainer.scoring import RewardScorer
from trainer.spec import EvaluationSpec

RESAMPLES = 10_000


@dataclass(frozen=True)
class Evaluation:
    """N images with their scores."""

    prompts: list[str]
    seeds: list[int]
    images: NDArray[np.uint8]  # [N, H, W, 3]; [0, H, W, 3] where they were not kept
    scores: dict[str, NDArray[np.float64]]  # reward -> [N], NaN where it gave an error
    versions: dict[str, list[str]] = field(default_factory=dict)  # reward -> those that answered
    measures: dict[str, float] = field(default_factory=dict)  # diversity, kl: what was asked for
    stand_ins: list[str] = field(default_factory=list)  # rewards that small models stood in for

    @property
    def metrics(self) -> Metrics:
        """Named as everywhere else; without the mean of a reward that scored no image."""
        metrics = {}
        for reward, scores in self.scores.items():
            known = scores[np.isfinite(scores)]
            if len(known):
                metrics[f"eval/{reward}/mean"] = float(known.mean())
                metrics[f"eval/{reward}/std"] = float(known.std())
        return metrics | {f"eval/{name}": value for name, value in self.measures.items()}

    def without_images(self) -> "Evaluation":
        """The same, a hundred times smaller."""
        return replace(self, images=self.images[:0])

    def save(self, folder: RunFolder, name: str) -> None:
        """Write as one safetensors file."""
        arrays = {"images": self.images} | {
            f"scores.{reward}": values for reward, values in self.scores.items()
        }
        labels = json.dumps(
            {
                "prompts": self.prompts,
                "seeds": self.seeds,
                "versions": self.versions,
                "measures": self.measures,
                "stand_ins": self.stand_ins,
            }
        )
        with folder.file(name) as path:
            save_file(arrays, path, metadata={"labels": labels})

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what `save` wrote."""
        with safe_open(path, framework="numpy") as file:
            labels = json.loads(file.metadata()["labels"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        scores = {
            key.removeprefix("scores."): values
            for key, values in arrays.items()
            if key.startswith("scores.")
        }
        return cls(
            labels["prompts"],
            labels["seeds"],
            arrays["images"],
            scores,
            labels["versions"],
            labels["measures"],
            labels.get("stand_ins", []),
        )


def evaluate(
    algorithm: Algorithm,
    scorer: RewardScorer,
    spec: EvaluationSpec,
    embedder: ImageEmbedder | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Generate and score the evaluation samples: prompt i with seed i, prompts in turn.

    Args:
        algorithm: generates them, and gives their divergence from the base model if `spec.kl`.
        scorer: knows the rewards of training and those of evaluation alone.
        spec: how many of what.
        embedder: measures their diversity.
        check: called before each batch; what it raises ends the evaluation.
    """
    prompts = [spec.prompts[i % len(spec.prompts)] for i in range(spec.samples)]
    seeds = list(range(spec.samples))
    images, futures, divergences = [], [], []
    for start in range(0, spec.samples, spec.batch_size):
        part = slice(start, start + spec.batch_size)
        check()
        batch = algorithm.generate(prompts[part], seeds[part])
        images.append(batch)
        futures.append(scorer.submit(batch, prompts[part]))
        if spec.kl:
            check()
            divergences.append(algorithm.kl(prompts[part], seeds[part]))
    measures = {}
    if embedder is not None:
        measures["diversity"] = mean_pairwise_distance(embedder.embed(np.concatenate(images)))
    if spec.kl:
        measures["kl"] = float(np.concatenate(divergences).mean())
    scored = [future.result() for future in futures]
    scores = {
        reward: np.concatenate([batch.per_reward[reward] for batch in scored])
        for reward in scored[0].per_reward
    }
    versions = {
        reward: sorted({version for batch in scored for version in batch.versions[reward]})
        for reward in scored[0].versions
    }
    stand_ins = sorted({reward for batch in scored for reward in batch.stand_ins})
    return Evaluation(prompts, seeds, np.concatenate(images), scores, versions, measures, stand_ins)


def version_warnings(before: Evaluation, after: Evaluation) -> list[str]:
    """One sentence for each reward of which more than one version gave the scores."""
    return [
        f"{reward} scored as version {' and '.join(before.versions[reward])} before training and "
        f"as version {' and '.join(after.versions[reward])} after it: scores of two versions are "
        "not comparable, and their difference is not the effect of training alone"
        for reward in before.versions
        if len({*before.versions[reward], *after.versions[reward]}) > 1
    ]


def compare(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """Means, spreads and the standardised difference of paired scores [N].

    effect_size = (mean after − mean before) / std before (Glass's Δ, Glass 1976), with the sample
    standard deviation. ci95 is its percentile bootstrap interval over pairs (Efron & Tibshirani
    1993, ch. 13), 10,000 resamples with a fixed seed. Pairs with an error on either side are left
    out. Both are None when the scores before have no spread.
    """
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    result: dict[str, Any] = {
        "before": _describe(before),
        "after": _describe(after),
        "effect_size": None,
        "ci95": None,
    }
    if len(before) < 2 or before.std() == 0:
        return result
    draws = np.random.default_rng(0).integers(0, len(before), (RESAMPLES, len(before)))
    resampled = before[draws]
    spread = resampled.std(axis=1, ddof=1)
    usable = spread > 0
    effects = (after[draws].mean(axis=1) - resampled.mean(axis=1))[usable] / spread[usable]
    low, high = np.percentile(effects, [2.5, 97.5])
    result["effect_size"] = float((after.mean() - before.mean()) / before.std(ddof=1))
    result["ci95"] = [float(low), float(high)]
    return result


def _describe(scores: NDArray[np.float64]) -> dict[str, Any]:
    if len(scores) == 0:
        return {"mean": None, "std": None, "n": 0}
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    return {"mean": float(scores.mean()), "std": spread, "n": len(scores)}
