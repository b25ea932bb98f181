"""What each sample of an iteration counts in the regression, from its reward."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.runtime.statistics import groups, has_spread

Rewards = NDArray[np.float64]
Weights = NDArray[np.float64]


def softmax_weights(rewards: Rewards, inverse_temperature: float) -> Weights:
    """w_RWR = exp(β r) / Z, with Z such that the N weights have the mean 1, [N].

    Black et al. 2023 (arXiv 2305.13301, section 4.2): the softmax of β r times N, as the authors'
    code has it (github.com/jannerm/ddpo, ddpo/utils/hdf5.py, where β is called temperature, yet
    multiplies).

    Args:
        rewards: [N] finite.
        inverse_temperature: β ≥ 0. At 0 all samples count alike; the larger, the more the best
            alone count. Only differences of rewards matter, in units of 1/β.
    """
    exponentials = np.exp(inverse_temperature * (rewards - rewards.max()))
    weights: Weights = exponentials * (len(rewards) / exponentials.sum())
    return weights


def sparse_weights(rewards: Rewards, percentile: float) -> Weights:
    """w_sparse = 1[r ≥ C], with C the given quantile of the N rewards, [N] of 0 and 1.

    Black et al. 2023 (arXiv 2305.13301, section 4.2 and appendix D.2). Between two rewards the
    quantile is interpolated linearly, and samples as good as C are kept, as in the authors' code
    (github.com/jannerm/ddpo, ddpo/utils/logger.py): the best is always kept, and so are all of
    equal rewards, or of such as differ by rounding alone.

    Args:
        rewards: [N] finite.
        percentile: share of the samples to discard, in [0, 1).
    """
    if not has_spread(rewards):
        return np.ones_like(rewards)
    return (rewards >= np.quantile(rewards, percentile)).astype(np.float64)


def for_each_prompt(
    weigh: Callable[[Rewards], Weights], rewards: Rewards, prompts: Sequence[str]
) -> Weights:
    """Weights [N] that compare each sample only with those of its own prompt.

    Black et al. 2023 (arXiv 2305.13301, appendix D.3): it is what normalising rewards per prompt
    is to DDPO. A prompt's samples then count, as a whole, by their number, not by their rewards.

    Args:
        weigh: `softmax_weights` or `sparse_weights`, at some temperature or percentile.
        rewards: [N].
        prompts: N.
    """
    weights = np.empty_like(rewards)
    for places in groups(prompts).values():
        weights[places] = weigh(rewards[places])
    return weights


def effective_samples(weights: Weights) -> float:
    """(Σ w)² / Σ w²: so many samples of equal weight would say as much (Kish 1965).

    Between 1 (one sample counts) and N (all count alike).
    """
    return float(weights.sum() ** 2 / (weights**2).sum())
