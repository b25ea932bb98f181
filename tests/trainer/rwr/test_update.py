"""The accumulated gradient against an independent loop over samples."""

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.rwr.config import RWRConfig
from trainer.rwr.update import update

COUNT, GUIDANCE = 6, 4.0
PROMPTS = list("abcabc")


@pytest.fixture(params=["epsilon", "v_prediction"])
def finetuner(diffusion, request):
    """In float64, so that a difference to the reference is one of mathematics."""
    diffusion.pipeline.scheduler.register_to_config(prediction_type=request.param)
    config = RWRConfig(sampling_steps=4, guidance_scale=GUIDANCE, row_threads=2)
    made = Finetuner(diffusion, config, PROMPTS, 0)
    diffusion.unet.double()
    return made


def naive_loss(finetuner, samples, weights, seed):
    """By diffusers' scheduler, one sample at a time."""
    diffusion = finetuner.diffusion
    scheduler = DDPMScheduler.from_config(diffusion.pipeline.scheduler.config)
    random = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(1000, (COUNT,), generator=random)
    noise = torch.randn(samples.shape, generator=random).double()
    total = torch.zeros((), dtype=torch.float64)
    for i, prompt in enumerate(PROMPTS):
        row = slice(i, i + 1)
        noised = scheduler.add_noise(samples[row], noise[row], timesteps[row])
        conditional, unconditional = (
            diffusion.unet(
                noised, timesteps[row], diffusion.encode([text]).embeddings.double()
            ).sample
            for text in (prompt, "")
        )
        guided = (1 - GUIDANCE) * unconditional + GUIDANCE * conditional
        target = noise[row]
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(samples[row], noise[row], timesteps[row])
        total = total + weights[i] * torch.nn.functional.mse_loss(guided, target)
    return total / COUNT


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_gradient_is_that_of_the_naive_loop_however_it_is_grouped(finetuner, rows):
    random = torch.Generator().manual_seed(7)
    samples = torch.randn(COUNT, 4, 8, 8, generator=random, dtype=torch.float64)
    weights = torch.tensor([0.1, 2.0, 0.5, 1.4, 0.0, 2.0], dtype=torch.float64)
    parameters = list(finetuner.parameters.values())
    expected_loss = naive_loss(finetuner, samples, weights, seed=1)
    expected = torch.autograd.grad(expected_loss, parameters)
    finetuner.optimization.apply_gradient = torch.zeros(()).clone  # the gradient stays
    loss, _ = update(
        finetuner,
        samples,
        Conditioning(finetuner.diffusion.encode(PROMPTS).embeddings.double()),
        weights,
        places=torch.arange(COUNT),
        count=COUNT,
        rows_per_forward=rows,
        random=torch.Generator().manual_seed(1),
    )
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    difference = torch.cat(
        [(p.grad - g).flatten() for p, g in zip(parameters, expected, strict=True)]
    )
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert difference.norm() / norm < 1e-5
