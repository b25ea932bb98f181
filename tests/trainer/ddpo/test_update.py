"""The accumulated gradient against an independent loop over timesteps."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal

from trainer.ddpo.policy import DenoisingPolicy, Trajectory
from trainer.ddpo.update import accumulate_gradient, apply_gradient

STEPS, COUNT, CLIP, GUIDANCE = 5, 6, 1e-3, 4.0


@pytest.fixture
def experience(diffusion):
    """Samples of a policy, and advantages; then the policy moves, so that some ratios clip.

    The UNet is in float64 from then on: a difference to the reference is then one of mathematics.
    """
    policy = DenoisingPolicy(
        diffusion.unet,
        diffusion.scheduler,
        steps=STEPS,
        eta=1.0,
        guidance_scale=GUIDANCE,
        unconditional=diffusion.encode([""]),
    )
    random = torch.Generator().manual_seed(0)
    embeddings = diffusion.encode(list("abcabc"))
    path = policy.sample(embeddings, torch.randn(COUNT, STEPS + 1, 4, 8, 8, generator=random))
    advantages = torch.randn(COUNT, generator=random)
    with torch.no_grad():
        for parameter in diffusion.trainable().values():
            parameter.add_(2e-3 * torch.randn(parameter.shape, generator=random))
    diffusion.unet.double()
    path = Trajectory(path.latents.double(), path.log_probs.double())
    return policy, path, embeddings.double(), advantages.double()


def naive_loss(diffusion, path, embeddings, advantages):
    """By diffusers' scheduler, one timestep of all samples at a time: mean loss, share clipped."""
    scheduler = DDIMScheduler.from_config(diffusion.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(STEPS)
    zeros = torch.zeros_like(path.latents[:, 0])
    losses, outside = [], []
    for i, timestep in enumerate(scheduler.timesteps):
        latents = path.latents[:, i]
        conditional = diffusion.unet(latents, timestep, embeddings).sample
        empty = diffusion.encode([""] * COUNT).double()
        unconditional = diffusion.unet(latents, timestep, empty).sample
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        mean = scheduler.step(guided, timestep, latents, eta=1.0, variance_noise=zeros).prev_sample
        previous = timestep - 1000 // STEPS
        sigma = math.sqrt(scheduler._get_variance(timestep, previous))
        log_prob = Normal(mean, sigma).log_prob(path.latents[:, i + 1]).mean(dim=(1, 2, 3))
        ratio = torch.exp(log_prob - path.log_probs[:, i])
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
        losses.append(-torch.minimum(advantages * ratio, advantages * clipped))
        outside.append((ratio < 1 - CLIP) | (ratio > 1 + CLIP))
    return torch.stack(losses).mean(), torch.stack(outside).double().mean()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_gradient_is_that_of_the_naive_loop_however_it_is_grouped(diffusion, experience, rows):
    policy, path, embeddings, advantages = experience
    parameters = list(diffusion.trainable().values())
    expected_loss, expected_fraction = naive_loss(diffusion, path, embeddings, advantages)
    expected = torch.autograd.grad(expected_loss, parameters)
    loss, kl, clip_fraction, deviation = accumulate_gradient(
        policy,
        path.latents,
        path.log_probs,
        embeddings,
        advantages,
        clip_range=CLIP,
        rows_per_forward=rows,
        order=torch.Generator().manual_seed(1),
    )
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert clip_fraction.item() == pytest.approx(expected_fraction.item())
    assert 0 < clip_fraction < 1
    assert kl > 0
    assert deviation > CLIP
    difference = torch.cat(
        [(p.grad - g).flatten() for p, g in zip(parameters, expected, strict=True)]
    )
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert difference.norm() / norm < 1e-5


def test_the_step_is_clipped_to_the_norm_and_the_gradient_is_cleared():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    norm = apply_gradient(optimizer, [parameter], max_grad_norm=1.0)
    assert norm.item() == pytest.approx(50)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))
    assert parameter.grad is None
