"""The clipped objective against numbers worked by hand."""

import math

import pytest
import torch

from trainer.ddpo.objective import clipped_objective

CLIP = 0.1


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Inside the range nothing is clipped: loss -A r, gradient -A r with respect to log_prob.
        (1.05, 2.0, -2.10, -2.10),
        (0.95, -2.0, 1.90, 1.90),
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
    losses, ratios = clipped_objective(
        log_prob, old, torch.tensor([advantage], dtype=torch.float64), CLIP
    )
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, rel=1e-9)
    assert ratios.item() == pytest.approx(ratio, rel=1e-9)
    assert not ratios.requires_grad
    assert log_prob.grad.item() == pytest.approx(slope, rel=1e-9)


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
