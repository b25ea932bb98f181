"""The denoising loss against diffusers' own schedulers and closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.rwr.objective import add_noise, regression_target, squared_error


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(0)
    samples, noise = torch.randn(2, 5, 4, 3, 3, generator=random, dtype=torch.float64)
    return samples, noise, torch.tensor([0, 1, 250, 600, 999])


def scheduler(**changes):
    made = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes
    )
    made.alphas_cumprod = made.alphas_cumprod.double()
    return made


def test_noised_samples_are_those_of_diffusers(rows):
    samples, noise, timesteps = rows
    reference = scheduler()
    noised = add_noise(samples, noise, reference.alphas_cumprod[timesteps])
    torch.testing.assert_close(noised, reference.add_noise(samples, noise, timesteps))


def test_the_velocity_is_that_of_diffusers(rows):
    samples, noise, timesteps = rows
    reference = scheduler(prediction_type="v_prediction")
    target = regression_target(samples, noise, reference.alphas_cumprod[timesteps], "v_prediction")
    torch.testing.assert_close(target, reference.get_velocity(samples, noise, timesteps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_model_that_answers_the_target_denoises_exactly(rows, prediction_type):
    samples, noise, timesteps = rows
    reference = scheduler(prediction_type=prediction_type, clip_sample=False)
    alphas = reference.alphas_cumprod[timesteps]
    answer = regression_target(samples, noise, alphas, prediction_type)
    noised = add_noise(samples, noise, alphas)
    for i, timestep in enumerate(timesteps):
        step = reference.step(answer[i : i + 1], int(timestep), noised[i : i + 1])
        torch.testing.assert_close(step.pred_original_sample, samples[i : i + 1])


def test_the_error_is_a_mean_over_each_row():
    target = torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([[[[1.0, -1], [3, 1]]], [[[0.0, 0], [2, 0]]]])
    torch.testing.assert_close(squared_error(prediction, target), torch.tensor([3.0, 1.0]))
