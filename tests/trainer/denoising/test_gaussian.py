"""Log-density and divergence against torch.distributions and the published formula."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from trainer.denoising.gaussian import gaussian_kl, gaussian_log_prob

SIGMA = torch.tensor([1.0, 0.5, 0.1, 0.02, 3.0]).view(-1, 1, 1, 1)


def draw(seed):
    return torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_log_prob_is_the_mean_normal_log_density():
    mean, value = draw(0), draw(1)
    expected = Normal(mean, SIGMA).log_prob(value).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(mean, SIGMA, value), expected)


def test_log_prob_is_the_published_one():
    """As ddim_with_logprob.py of kvablack/ddpo-pytorch has it, and trl after it."""
    mean, value = draw(0), draw(1)
    square = ((value - mean) ** 2) / (2 * SIGMA**2)
    published = -square - torch.log(SIGMA) - math.log(math.sqrt(2 * math.pi))
    published = published.mean(dim=tuple(range(1, published.ndim)))
    torch.testing.assert_close(gaussian_log_prob(mean, SIGMA, value), published)


def test_kl_is_the_mean_divergence_of_two_normals():
    mean, reference = draw(2), draw(3)
    expected = kl_divergence(Normal(mean, SIGMA), Normal(reference, SIGMA)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_kl(mean, reference, SIGMA), expected)
    assert torch.equal(gaussian_kl(mean, mean, SIGMA), torch.zeros(5))
