"""Advantages: rewards less what was to be expected of their prompt.

DDPO asks running statistics of each prompt what to expect; GRPO asks the prompt's other samples of
the same iteration, and needs no memory. Both take a weighted sum of rewards as they take a single
one, be its parts raw or z-scores (a z-score tells where a prompt stands among its iteration's
prompts, so running statistics do not see the level rise). GDPO has compared each sample with its
prompt's others already, reward by reward; statistics per prompt would undo it: they give every
prompt a spread of 1, though agreement of the rewards is what should widen it.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.rewards.weighting import EPSILON, group_zscores
from trainer.runtime.statistics import groups, has_spread

# Added to a prompt's standard deviation, as in kvablack/ddpo-pytorch (stat_tracking.py).
PROMPT_EPSILON = 1e-6


def batch_advantages(rewards: NDArray[np.float64], advantage_clip: float) -> NDArray[np.float64]:
    """(A − mean) / (std + ε) over all N samples, clipped, [N].

    Eq. 6 of GDPO (Liu et al. 2026, arXiv 2601.05242), with the sample standard deviation and the ε
    of the authors' code (github.com/NVlabs/GDPO, trl-GDPO).

    Args:
        rewards: [N], sums of rewards that are normalised within their prompt's group.
        advantage_clip: advantages lie in ± this.
    """
    if not has_spread(rewards):
        return np.zeros_like(rewards)
    normalised: NDArray[np.float64] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)
    return normalised.clip(-advantage_clip, advantage_clip)


def group_advantages(
    prompts: Sequence[str], rewards: NDArray[np.float64], advantage_clip: float
) -> NDArray[np.float64]:
    """(r − mean) / (std + ε) within each prompt's samples of this iteration, clipped, [N].

    The group-relative advantage of GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), as
    Flow-GRPO has it for images (Liu et al. 2025, arXiv 2505.05470). Spread and ε are those of
    `group_zscores`; a prompt with one sample has nothing to compare it with: it gets 0.
    """
    return group_zscores(rewards, prompts).clip(-advantage_clip, advantage_clip)


class PerPromptStatistics:
    """The latest rewards of each prompt (Black et al. 2023, appendix D.3).

    It serves as a value function that depends on the prompt alone. The spread is the population
    standard deviation.
    """

    def __init__(self, buffer_size: int, min_count: int, advantage_clip: float) -> None:
        self._buffer_size = buffer_size
        self._min_count = min_count
        self._clip = advantage_clip
        self._rewards: dict[str, deque[float]] = {}

    def advantages(
        self, prompts: Sequence[str], rewards: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Take in one iteration's `rewards` [N] and return its clipped advantages [N].

        The rewards enter their prompt's buffer before they are normalised by it. A prompt with
        fewer than `min_count` rewards in its buffer is normalised over all N. Rewards that differ
        by rounding alone get 0, like equal ones.
        """
        for prompt, reward in zip(prompts, rewards, strict=True):
            buffer = self._rewards.setdefault(prompt, deque(maxlen=self._buffer_size))
            buffer.append(float(reward))
        normalised = np.zeros_like(rewards)
        for prompt, places in groups(prompts).items():
            own = rewards[places]
            kept = np.array(self._rewards[prompt], dtype=np.float64)
            known = kept if len(kept) >= self._min_count else rewards
            if has_spread(np.concatenate([known, own])):
                normalised[places] = (own - known.mean()) / (known.std() + PROMPT_EPSILON)
        return normalised.clip(-self._clip, self._clip)

    def state_dict(self) -> dict[str, list[float]]:
        """Prompt -> its kept rewards, oldest first; survives JSON exactly."""
        return {prompt: list(kept) for prompt, kept in self._rewards.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Replace what is kept by what `state_dict` returned."""
        self._rewards = {
            prompt: deque(kept, maxlen=self._buffer_size) for prompt, kept in state.items()
        }
