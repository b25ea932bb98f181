"""How far a model in training is from where it started, against torch's own divergence."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from trainer.ddpo.config import DDPOConfig
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.runtime.seeds import generator

PROMPTS, SEEDS = ["a", "b", "a"], [0, 1, 2]
LORA = {"rank": 2, "alpha": 3}


def make(folder, lora=None, keep_reference=True, **options):
    config = DDPOConfig(sampling_steps=3, sample_batch_size=2, lora=lora, **options)
    diffusion = Diffusion.load(str(folder))
    return Finetuner(diffusion, config, ["p"], seed=0, keep_reference=keep_reference)


def train(finetuner):
    """Any change of the weights will do."""
    random = generator(7)
    with torch.no_grad():
        for parameter in finetuner.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_it_is_that_of_the_steps_gaussians(pipeline_folder, lora):
    trained, start = make(pipeline_folder, lora), make(pipeline_folder)
    train(trained)
    expected = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        noise = torch.randn(1, 4, *trained.diffusion.latent_shape, generator=_noise(seed))
        conditioning = trained.diffusion.encode([prompt])
        latents = trained.policy.sample(conditioning, noise).latents
        steps = []
        for i in range(3):
            index = torch.tensor([i])
            with torch.no_grad():
                mean, sigma = trained.policy.step(latents[:, i], index, conditioning)
                before, _ = start.policy.step(latents[:, i], index, conditioning)
            steps.append(kl_divergence(Normal(mean, sigma), Normal(before, sigma)).mean())
        expected.append(float(torch.stack(steps).mean()))
    measured = trained.kl(PROMPTS, SEEDS)
    assert measured.shape == (3,)
    assert min(expected) > 1e-3
    np.testing.assert_allclose(measured, expected, rtol=1e-4)


def _noise(seed):
    return generator("evaluation", seed)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_before_training_there_is_none(pipeline_folder, lora):
    assert make(pipeline_folder, lora).kl(PROMPTS, SEEDS).max() < 1e-9


def test_it_is_that_of_the_averaged_weights_where_pictures_are(pipeline_folder):
    finetuner = make(pipeline_folder, LORA, ema_decay=0.999)
    train(finetuner)  # the average has not moved yet
    assert finetuner.kl(PROMPTS, SEEDS).max() < 1e-9


def test_without_a_reference_it_says_what_to_ask_for(pipeline_folder):
    with pytest.raises(RuntimeError, match="keep_reference=True"):
        make(pipeline_folder, keep_reference=False).kl(["a"], [0])
