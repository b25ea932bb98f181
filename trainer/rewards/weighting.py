"""The weighted sum of a job's rewards, each normalised as the job says."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.algorithm import Metrics
from trainer.runtime.statistics import groups, has_spread, sample_std
from trainer.spec.sections import RewardSpec

# Added to a standard deviation, as in the authors' code of GDPO, so that scores which hardly differ
# say little.
EPSILON = 1e-4

Scores = NDArray[np.float64]


def weighted_sum(
    rewards: Sequence[RewardSpec], per_reward: Mapping[str, Scores], prompts: Sequence[str]
) -> Scores:
    """Σ weight × normalised score of one iteration's N samples, [N].

    A reward with `normalize: none` enters as it is; with `zscore`, `group` as the functions below
    make it. All statistics are of these N samples, each of which has a score of every reward.

    Args:
        rewards: names, weights and normalisations.
        per_reward: name -> finite scores [N].
        prompts: N, the keys of their rows; samples of one are a group.
    """
    parts = []
    for reward in rewards:
        scores = per_reward[reward.name]
        if reward.normalize == "zscore":
            scores = zscores(scores)
        elif reward.normalize == "group":
            scores = group_zscores(scores, prompts)
        parts.append(reward.weight * scores)
    total: Scores = np.sum(parts, axis=0)
    return total


def reward_metrics(total: Scores, per_reward: Mapping[str, Scores]) -> Metrics:
    """Mean and standard deviation of an iteration's weighted sums, and of each reward's raw scores.

    Args:
        total: [N] what `weighted_sum` returned.
        per_reward: name -> [N], as the services gave them.
    """
    metrics = {"reward_mean": float(total.mean()), "reward_std": sample_std(total)}
    for name, scores in per_reward.items():
        metrics[f"rewards/{name}/mean"] = float(scores.mean())
        metrics[f"rewards/{name}/std"] = sample_std(scores)
    return metrics


def zscores(scores: Scores) -> Scores:
    """(x − mean) / (std + ε) over `scores` [N], with the population standard deviation.

    Scores that differ by rounding alone get 0, like equal ones.
    """
    if not has_spread(scores):
        return np.zeros_like(scores)
    normalised: Scores = (scores - scores.mean()) / (scores.std() + EPSILON)
    return normalised


def group_zscores(scores: Scores, prompts: Sequence[str]) -> Scores:
    """(r − mean) / (std + ε) over the samples of the same prompt, [N].

    Eq. 4 of GDPO (Liu et al. 2026, arXiv 2601.05242), with the sample standard deviation and the ε
    of the authors' code (github.com/NVlabs/GDPO, trl-GDPO). A prompt with one sample has nothing to
    compare it with, and samples that differ by rounding alone nothing to tell them apart: they get
    0.
    """
    normalised = np.zeros_like(scores)
    for group in groups(prompts).values():
        kept = scores[group]
        if has_spread(kept):
            normalised[group] = (kept - kept.mean()) / (kept.std(ddof=1) + EPSILON)
    return normalised
