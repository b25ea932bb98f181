"""The two estimators of the policy gradient, as losses to be minimised."""

import torch
from torch import Tensor


def score_function_objective(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Loss of each (sample, timestep), whose gradient is -advantage · ∇log_prob, [N].

    The estimator DDPO-SF of Black et al. 2023 (arXiv 2305.13301, section 4.3, the equation marked
    DDPO_SF), also called REINFORCE (Williams 1992). It holds for samples of the parameters that are
    differentiated, and so for one update.

    Args:
        log_prob: [N] log p_θ of the step taken, with gradient.
        advantage: [N] normalised reward of the sample the step belongs to.
    """
    return -advantage * log_prob


def clipped_objective(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Loss of each (sample, timestep), whose gradient at ratio 1 is -advantage · ∇log_prob.

    The estimator DDPO-IS of Black et al. 2023 (arXiv 2305.13301, section 4.3, the equation marked
    DDPO_IS) inside the clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, equation
    7), negated: max(-A·r, -A·clip(r, 1-ε, 1+ε)) with r = p_θ(x_{t-1} | x_t, c) / p_θ_old(x_{t-1} |
    x_t, c). At the parameters that sampled it is exact. Away from them r corrects one step, while
    the steps before and after it stay theirs: it holds near them, wherever training is by then.

    Args:
        log_prob: [N] log p_θ of the step taken, with gradient.
        old_log_prob: [N] the same under the parameters that sampled it.
        advantage: [N] normalised reward of the sample the step belongs to.
        clip_range: ε.

    Returns:
        loss [N] with gradient, and whether it has one, [N] bool: not where it is clipped, nor where
        the advantage is 0.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss, bound = -advantage * ratio, -advantage * clipped
    # Not `loss >= bound`, which a NaN is not: it must get into the gradient, where it is noticed.
    return torch.maximum(loss, bound), ~(loss < bound) & (advantage != 0)
