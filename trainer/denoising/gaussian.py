"""Log-density and divergence of the Gaussians that denoising steps are."""

import math

from torch import Tensor


def gaussian_log_prob(mean: Tensor, sigma: Tensor, value: Tensor) -> Tensor:
    """Log-density of N(mean, sigma² I) at `value`, as a *mean* over the dimensions of a row.

    A mean, where a density has a sum: it makes the ratio comparable across latent sizes, and it is
    what the paper's clip range of 1e-4 was tuned for (kvablack/ddpo-pytorch, jannerm/ddpo).

    Args:
        mean: [N, C, h, w].
        sigma: [N, 1, 1, 1].
        value: [N, C, h, w].

    Returns:
        [N].
    """
    density = -0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma² I) ‖ N(reference_mean, sigma² I)), as a *mean* over a row's dimensions.

    ‖μ − μ_ref‖² / (2σ²), which is exact as both have the same sigma: the divergence from the model
    that training started from, of one step of the chain (DPOK, Fan et al. 2023, arXiv 2305.16381,
    section 4.2). A mean as in `gaussian_log_prob`, so that both scale alike.

    Args:
        mean: [N, C, h, w].
        reference_mean: [N, C, h, w].
        sigma: [N, 1, 1, 1].

    Returns:
        [N].
    """
    return (0.5 * ((mean - reference_mean) / sigma) ** 2).flatten(1).mean(1)
