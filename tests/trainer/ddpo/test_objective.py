"""The clipped objective against numbers worked by hand."""

import math

import pytest
import torch

from trainer.ddpo.objective import clipped_objective, score_function_objective

CLIP = 0.1


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Inside the range nothing is clipped: loss -A r, gradient -A r with respect to log_prob.
        (1.05, 2.0, -2.10, -2.10),
        (0.95, -2.0, 1.90, 1.90),
        # Nothing is to be learned where a sample is as good as was expected.
        (1.05, 0.0, 0.0, 0.0),
        # A good step already 1 + clip times as probable gets no further push ...
        (1.30, 2.0, -2.20, 0.0),
        # ... but one that became less probable is pulled back in full.
        (0.70, 2.0, -1.40, -1.40),
        # A bad step already 1 - clip times as probable is left alone ...
        (0.70, -2.0, 1.80, 0.0),
        # ... but one that became more probable is pushed down in full.
        (1.30, -2.0, 2.60, 2.60),
    ],
)
def test_loss_and_gradient_on_both_sides_of_the_clip(ratio, advantage, loss, slope):
    old = torch.tensor([-1.25], dtype=torch.float64)
    log_prob = (old + math.log(ratio)).requires_grad_()
    losses, teaches = clipped_objective(
        log_prob, old, torch.tensor([advantage], dtype=torch.float64), CLIP
    )
    losses.sum().backward()
    assert teaches.item() == (slope != 0)
    assert losses.item() == pytest.approx(loss, rel=1e-9)
    assert log_prob.grad.item() == pytest.approx(slope, rel=1e-9)


def test_what_is_no_number_is_not_taken_for_clipped():
    log_prob = torch.tensor([math.nan], requires_grad=True)
    losses, teaches = clipped_objective(log_prob, torch.zeros(1), torch.ones(1), CLIP)
    losses.sum().backward()
    assert teaches.item()
    assert log_prob.grad.isnan().item()


def test_at_ratio_one_the_gradient_is_the_score_function_estimator():
    torch.manual_seed(0)
    parameters = torch.randn(5, requires_grad=True, dtype=torch.float64)
    features = torch.randn(7, 5, dtype=torch.float64)
    advantages = torch.randn(7, dtype=torch.float64)

    def log_prob():
        return -((features @ parameters) ** 2) - 1

    losses, _ = clipped_objective(log_prob(), log_prob().detach(), advantages, CLIP)
    clipped = torch.autograd.grad(losses.mean(), parameters)[0]
    score_function = torch.autograd.grad(-(advantages * log_prob()).mean(), parameters)[0]
    torch.testing.assert_close(clipped, score_function, rtol=1e-12, atol=0)
    losses = score_function_objective(log_prob(), advantages)
    assert torch.equal(torch.autograd.grad(losses.mean(), parameters)[0], score_function)


def test_both_estimators_find_the_gradient_of_an_expected_reward():
    """One Gaussian step, x ~ N(m, 1), reward x²: d/dm E[x²] = d/dm (m² + 1) = 2m.

    DDPO-IS from samples of another mean, DDPO-SF from samples of its own.
    """
    count, mean, old_mean = 2_000_000, 0.7, 0.5
    noise = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def gradient(sampled_from, losses):
        x = sampled_from + noise
        m = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
        value = losses(-0.5 * (x - m) ** 2, -0.5 * (x - sampled_from) ** 2, x**2).mean()
        return -torch.autograd.grad(value, m)[0].item()

    # One sample's spread is about 5, so the mean of two million has a standard deviation of 0.004.
    score_function = gradient(mean, lambda new, _, reward: score_function_objective(new, reward))
    assert score_function == pytest.approx(2 * mean, abs=0.02)
    importance = gradient(
        old_mean, lambda new, old, reward: clipped_objective(new, old, reward, 1 - 1e-12)[0]
    )
    stale = gradient(old_mean, lambda new, _, reward: score_function_objective(new, reward))
    assert importance == pytest.approx(2 * mean, abs=0.1)
    assert abs(stale - 2 * mean) > 0.2
