"""The clipped importance-sampling objective."""

import torch
from torch import Tensor


def clipped_objective(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Loss of each (sample, timestep), whose gradient at ratio 1 is -advantage · ∇log_prob.

    The estimator DDPO-IS of Black et al. 2023 (arXiv 2305.13301, section 4.3) inside the clipped
    surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated to be minimised:
    max(-A·r, -A·clip(r, 1-ε, 1+ε)) with r = p_θ(x_{t-1} | x_t, c) / p_θ_old(x_{t-1} | x_t, c).

    Args:
        log_prob: [N] log p_θ of the step taken, with gradient.
        old_log_prob: [N] the same under the parameters that sampled it.
        advantage: [N] normalised reward of the sample the step belongs to.
        clip_range: ε.

    Returns:
        loss [N] with gradient, and the ratio r [N] without.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped), ratio.detach()
