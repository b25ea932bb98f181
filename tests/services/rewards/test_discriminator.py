from contextlib import closing

import numpy as np
import pytest
import torch

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Compared, Labelled
from services.rewards.discriminator import (
    Critic,
    DiscriminatorHyperparameters,
    gradient_penalty,
    hinge_loss,
)
from tests.services.learned.learning import (
    SMALL,
    dark,
    discriminator,
    fit,
    images,
    light,
    light_is_real,
    plain,
    sample,
    scores,
)


def critic(**hyperparameters):
    return Critic(DiscriminatorHyperparameters(**SMALL | hyperparameters), torch.device("cpu"))


@pytest.fixture
def reward(tmp_path):
    with closing(discriminator(tmp_path)) as reward:
        yield reward


def test_the_penalty_of_a_linear_critic_is_the_squared_distance_of_its_norm_from_one():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(2, 5, 3, 4, 4, generator=generator)
    weights = torch.randn(3, 4, 4, generator=generator).requires_grad_()

    def linear(x):
        return (x * weights).sum((1, 2, 3)) + 7

    penalty = gradient_penalty(linear, real, generated, torch.rand(5, generator=generator))
    norm = weights.detach().norm()
    torch.testing.assert_close(penalty.detach(), (norm - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(weights.grad, 2 * (norm - 1) * weights.detach() / norm)


def test_the_gradient_is_taken_between_each_real_and_generated_sample():
    real = torch.zeros(2, 1, 1, 2)
    generated = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 8.0]]]])

    # The gradient of half the squared length is the point itself. The points are 1/2 · (3, 4) and
    # 3/4 · (0, 8), of length 2.5 and 6.
    def half_square(x):
        return x.square().sum((1, 2, 3)) / 2

    penalty = gradient_penalty(half_square, real, generated, torch.tensor([0.5, 0.25]))
    assert penalty.item() == pytest.approx((1.5**2 + 5**2) / 2)


def test_hinge_loss_by_hand():
    loss = hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25]))
    assert loss.item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)


def test_the_loss_is_equation_3_on_what_was_drawn():
    learner = critic(gradient_penalty=10.0, batch_size=3)
    # With one example of each kind, what is drawn is known.
    learner.fit([Labelled(plain(200), real=True), Labelled(plain(30), real=False)], steps=0)
    mix_generator = torch.Generator().manual_seed(0)
    mix_generator.set_state(learner.generator.get_state())
    for _ in range(2):
        torch.randint(1, (3,), generator=mix_generator)
    losses = learner.losses()

    real, generated = ([torch.full((1, 16, 16), level / 127.5 - 1)] * 3 for level in (200, 30))
    real, generated = torch.stack(real), torch.stack(generated)
    network, squares = learner.network, []
    for epsilon, x, y in zip(torch.rand(3, generator=mix_generator), real, generated, strict=True):
        point = (epsilon * x + (1 - epsilon) * y)[None].requires_grad_()
        network(point).sum().backward()
        squares.append((point.grad.norm() - 1) ** 2)
    expected = network(generated).mean() - network(real).mean() + 10 * sum(squares) / 3
    torch.testing.assert_close(losses["loss"], expected)


def test_centering_adds_the_squared_mean_of_all_scores_and_holds_them_at_zero():
    def fitted(steps, **hyperparameters):
        learner = critic(learning_rate=1e-2, **hyperparameters)
        with torch.no_grad():
            learner.network[-2].bias.fill_(5.0)
        return learner.fit(light_is_real(), steps)

    plain_loss, centred = fitted(1), fitted(1, centering=3.0)
    mean = (centred["real_score"] + centred["generated_score"]) / 2
    assert abs(mean) > 1
    assert centred["loss"] - plain_loss["loss"] == pytest.approx(3.0 * mean**2, rel=1e-4)

    def distance(**hyperparameters):
        metrics = fitted(60, **hyperparameters)
        return abs(metrics["real_score"] + metrics["generated_score"])

    assert distance(centering=3.0) < 0.5 * distance()


def test_the_scale_of_scores_is_the_networks_output(reward):
    fit(reward, "job", light_is_real(4), steps=0, **SMALL)
    learner = critic()
    image = light(1)[0].image
    expected = learner.network(torch.from_numpy(image[None, None, :, :, 0] / 127.5 - 1).float())
    assert scores(reward, "job", light(1)) == pytest.approx([expected.item()], rel=1e-5)


@pytest.mark.parametrize("variant", ["wgan_gp", "spectral_norm"])
def test_a_few_steps_tell_unseen_real_images_from_generated_ones(reward, variant):
    fitted = fit(reward, "job", light_is_real(), steps=40, variant=variant, **SMALL)
    real = scores(reward, "job", light(16, seed=8))
    generated = scores(reward, "job", dark(16, seed=9))
    assert min(real) > max(generated)
    assert fitted.metrics["real_score"] > fitted.metrics["generated_score"]
    assert ("gradient_penalty" in fitted.metrics) == (variant == "wgan_gp")


def test_a_conditional_critic_judges_the_image_with_its_reference(reward):
    shades = images(64, 0, 256, seed=3)[:, :1, :1].repeat(16, 1).repeat(16, 2)
    matching = [Labelled(sample(shade, shade), real=True) for shade in shades]
    inverted = [Labelled(sample(shade, 255 - shade), real=False) for shade in shades]
    fit(reward, "job", matching + inverted, steps=60, conditional=True, **SMALL)
    shade = np.full((16, 16, 1), 230, np.uint8)
    same, other, none = scores(
        reward, "job", [sample(shade, shade), sample(shade, 255 - shade), sample(shade)]
    )
    assert same > other
    assert isinstance(none, SampleError)
    assert none.code == reward_pb2.ERROR_CODE_MISSING_INPUT


def test_a_sample_of_another_size_fails_alone(reward):
    fit(reward, "job", light_is_real(4), **SMALL)
    wrong = [sample(images(1, 0, 256, side=8)[0]), sample(np.zeros((16, 16, 3), np.uint8))]
    good, *refused = scores(reward, "job", [plain(9), *wrong])
    assert isinstance(good, float)
    assert {error.code for error in refused} == {reward_pb2.ERROR_CODE_INVALID_SAMPLE}
    assert "[8, 8, 1]" in str(refused[0])
    assert "[16, 16, 1]" in str(refused[0])


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([Compared(plain(1), plain(2), 1.0)], "example 0: a discriminator learns from labelled"),
        ([Labelled(plain(1), real=True)], "no generated examples"),
        ([Labelled(sample(images(1, 0, 9, side=8)[0]), real=True)], "example 0: the image is"),
    ],
)
def test_examples_it_cannot_learn_from_are_refused(reward, examples, words):
    fit(reward, "job", light_is_real(4), steps=0, **SMALL)
    fit(reward, "other", [Labelled(plain(3), real=True)], steps=0, **SMALL)
    before = reward.export("other").data
    with pytest.raises(InvalidRequest, match=words):
        fit(reward, "other", examples)
    assert reward.export("other").data == before
