import math
from contextlib import closing

import numpy as np
import pytest
import torch

from salon.errors import InvalidRequest
from salon.serving import Compared
from services.learned.trained_reward import LearnedConfig
from services.rewards.preference import (
    Preference,
    PreferenceHyperparameters,
    PreferenceModel,
    bradley_terry_loss,
)
from tests.services.learned.learning import (
    SMALL,
    brighter_is_better,
    fit,
    light_is_real,
    plain,
    scores,
)


@pytest.fixture
def reward(tmp_path):
    with closing(Preference(LearnedConfig(state_dir=tmp_path))) as reward:
        yield reward


def test_the_loss_by_hand():
    # P = σ(ln 3) = 3/4: −ln ¾ if the first wins, −ln ¼ if the second does, half of each in a tie.
    first, second = torch.full((3,), math.log(3)), torch.zeros(3)
    for preference, expected in ((1.0, 0.287682), (0.0, 1.386294), (0.5, 0.836988)):
        loss = bradley_terry_loss(first, second, torch.full((3,), preference))
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_value_and_gradient_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, generator=generator, dtype=torch.float64).unbind()
    preference = torch.tensor([1, 0, 0.5, 1, 0, 0.5], dtype=torch.float64)
    ours = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    theirs = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    loss = bradley_terry_loss(*ours, preference)
    p = theirs[0].exp() / (theirs[0].exp() + theirs[1].exp())
    written_out = -(preference * p.log() + (1 - preference) * (1 - p).log()).mean()
    torch.testing.assert_close(loss, written_out)
    loss.backward()
    written_out.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    # And by hand: ∂/∂r₁ is σ(r₁ − r₂) − μ, over the number of pairs.
    torch.testing.assert_close(ours[0].grad, (torch.sigmoid(first - second) - preference) / 6)


def test_rewards_far_apart_do_not_overflow():
    first = torch.tensor([1e4], requires_grad=True)
    loss = bradley_terry_loss(first, torch.tensor([0.0]), torch.tensor([0.0]))
    loss.backward()
    assert (loss.item(), first.grad.item()) == (1e4, 1.0)


def test_l2_adds_its_gradient_to_every_weight():
    def gradients(l2):
        hyperparameters = PreferenceHyperparameters(**SMALL | {"l2": l2})
        learner = PreferenceModel(hyperparameters, torch.device("cpu"))
        assert learner.optimizer.param_groups[0]["weight_decay"] == l2
        # Ties of identical images: the cross-entropy has no gradient, what moves weights is l2.
        learner.fit([Compared(plain(5), plain(5), 0.5)], steps=1)
        return torch.cat([weights.detach().flatten() for weights in learner.network.parameters()])

    still, shrunk = gradients(0.0), gradients(0.1)
    assert shrunk.norm() < still.norm()
    # Adam's first step is the learning rate against the sign of the gradient l2·θ.
    moved = still.abs() > 1e-2
    torch.testing.assert_close(
        shrunk[moved], (still - 1e-3 * still.sign())[moved], rtol=0, atol=1e-6
    )


def test_a_known_ranking_is_recovered_from_comparisons(reward):
    hyperparameters = SMALL | {"replay_capacity": 200}
    fitted = fit(reward, "job", brighter_is_better(200), steps=150, **hyperparameters)
    ranked = scores(reward, "job", [plain(level) for level in range(0, 256, 15)])
    assert np.all(np.diff(ranked) > 0)
    assert fitted.metrics["accuracy"] > 0.8
    assert fitted.metrics["comparison_examples"] == 200


def test_a_tie_pulls_two_images_together(reward):
    fit(reward, "job", brighter_is_better(50), steps=50, **SMALL)
    light, dark = scores(reward, "job", [plain(255), plain(0)])
    ties = [Compared(plain(255), plain(0), 0.5)] * 64
    fitted = fit(reward, "job", ties, steps=50)
    after = scores(reward, "job", [plain(255), plain(0)])
    assert abs(after[0] - after[1]) < 0.5 * (light - dark)
    assert "accuracy" not in fitted.metrics


def test_who_ranks_nothing_gets_nothing_right(reward):
    # Both images of a pair are the same, so their rewards are.
    given = [Compared(plain(level), plain(level), float(level % 2)) for level in range(32)]
    fitted = fit(reward, "job", given, steps=3, **SMALL)
    assert fitted.metrics["accuracy"] == 0.0


def test_labelled_samples_are_refused(reward):
    with pytest.raises(InvalidRequest, match="example 0: a preference model learns from compar"):
        fit(reward, "job", light_is_real(1), **SMALL)
