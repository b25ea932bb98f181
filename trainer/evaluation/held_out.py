"""Images of prompts and seeds that training never uses, scored; and before against after."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from salon.errors import InvalidRequest
from salon.numbers import is_number
from trainer.algorithm import Divergent, Generator, Metrics
from trainer.evaluation.diversity import ImageEmbedder, mean_pairwise_distance
from trainer.rewards.scorer import RewardScorer, Scale, submit_rows
from trainer.runtime.run_folder import RunFolder
from trainer.runtime.statistics import compare, sample_std
from trainer.spec.rewarded_job import RewardedJob
from trainer.spec.sections import EvaluationSpec


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
    scales: dict[str, Scale] = field(default_factory=dict)  # by reward; absent: nothing is known

    @property
    def metrics(self) -> Metrics:
        """Named as everywhere else; without what could not be measured, as the mean of no score."""
        metrics = {}
        for reward, scores in self.scores.items():
            known = scores[np.isfinite(scores)]
            if len(known):
                metrics[f"eval/{reward}/mean"] = float(known.mean())
                metrics[f"eval/{reward}/std"] = sample_std(known)
        metrics |= {f"eval/{name}": value for name, value in self.measures.items()}
        return {name: value for name, value in metrics.items() if is_number(value)}

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
                "stand_ins": self.stand_ins,
                # Without what could not be measured: JSON has no NaN.
                "measures": {n: value for n, value in self.measures.items() if is_number(value)},
                "scales": {reward: asdict(scale) for reward, scale in self.scales.items()},
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
            # An attempt of an older release did not write them.
            scales={r: Scale(**scale) for r, scale in labels.get("scales", {}).items()},
        )


def evaluate(
    generator: Generator,
    scorer: RewardScorer,
    spec: EvaluationSpec,
    embedder: ImageEmbedder | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Generate and score the evaluation samples: prompt i with seed i, prompts in turn.

    Args:
        generator: makes them, and is `Divergent` if `spec.kl`.
        scorer: knows the rewards of training and those of evaluation alone.
        spec: how many of what.
        embedder: measures their diversity.
        check: called before each batch; what it raises ends the evaluation.
    """
    rows = [spec.prompts[i % len(spec.prompts)] for i in range(spec.samples)]
    prompts = [row.prompt for row in rows]
    seeds = list(range(spec.samples))
    divergent = divergent_of(generator, spec)
    images, futures, divergences = [], [], []
    for start in range(0, spec.samples, spec.batch_size):
        part = slice(start, start + spec.batch_size)
        check()
        batch = generator.generate(prompts[part], seeds[part])
        images.append(batch)
        futures.append(submit_rows(scorer, batch, rows[part]))
        if divergent is not None:
            check()
            divergences.append(divergent.kl(prompts[part], seeds[part]))
    measures = {}
    if embedder is not None:
        measures["diversity"] = mean_pairwise_distance(embedder.embed(np.concatenate(images)))
    if divergences:
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
    scales = {reward: scale for batch in scored for reward, scale in batch.scales.items()}
    pictures = np.concatenate(images)
    return Evaluation(prompts, seeds, pictures, scores, versions, measures, stand_ins, scales)


def divergent_of(generator: Generator, spec: EvaluationSpec) -> Divergent | None:
    """Who gives the divergence from the base model; None where it is not measured.

    Raises:
        InvalidRequest: it is to be measured, and this generator cannot tell.
    """
    if not spec.kl:
        return None
    if not isinstance(generator, Divergent):
        raise InvalidRequest("evaluation.kl: this algorithm knows no divergence: leave it out")
    return generator


def effects(spec: RewardedJob, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """`rewards` and `eval_rewards` of a summary: what training did to each, and how to read it.

    Beside what `compare` gives, the `unit` of the scores; and which way is `better`, higher or
    lower: of what is trained on by the sign of its weight, else as its service says.
    """
    weights = {reward.name: reward.weight for reward in spec.rewards}

    def of(reward: str) -> dict[str, Any]:
        scale = after.scales.get(reward, Scale())
        weight = weights.get(reward, 0.0)
        falling = weight < 0 if weight else scale.lower_is_better
        found = compare(before.scores[reward], after.scores[reward])
        return {**found, "unit": scale.unit, "better": "lower" if falling else "higher"}

    return {
        "rewards": {reward: of(reward) for reward in weights},
        "eval_rewards": {reward: of(reward) for reward in spec.eval_rewards},
    }


def version_warnings(before: Evaluation, after: Evaluation) -> list[str]:
    """One sentence for each reward of which more than one version gave the scores."""
    return [
        f"{reward} scored as version {' and '.join(before.versions[reward])} before training and "
        f"as version {' and '.join(after.versions[reward])} after it: scores of two versions are "
        "not comparable, and their difference is not the effect of training alone"
        for reward in before.versions
        if len({*before.versions[reward], *after.versions[reward]}) > 1
    ]
