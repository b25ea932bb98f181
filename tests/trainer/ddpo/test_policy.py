"""The denoising policy against diffusers' scheduler, torch.distributions and plain guidance."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal

from trainer.ddpo.policy import SIGMA_MIN, DenoisingPolicy, gaussian_log_prob

STEPS = 50


def make_policy(diffusion, scheduler=None, steps=STEPS, **changes):
    options = {"eta": 1.0, "guidance_scale": 5.0, **changes}
    return DenoisingPolicy(
        diffusion.unet,
        scheduler or diffusion.scheduler,
        steps=steps,
        unconditional=diffusion.encode([""]),
        **options,
    )


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_every_step_is_the_one_of_diffusers(diffusion, eta, spacing):
    scheduler = DDIMScheduler.from_config(diffusion.scheduler.config, timestep_spacing=spacing)
    policy = make_policy(diffusion, scheduler, eta=eta)
    reference = DDIMScheduler.from_config(scheduler.config)
    reference.set_timesteps(STEPS)
    embeddings = diffusion.encode(["a", "b"])
    with torch.no_grad():
        for i, timestep in enumerate(reference.timesteps):
            latents, noise = draw(i, 2, 4, 8, 8), draw(1000 + i, 2, 4, 8, 8)
            predicted = policy.guided_noise(latents, timestep.expand(2), embeddings)
            expected = reference.step(
                predicted, timestep, latents, eta=eta, variance_noise=noise
            ).prev_sample
            mean, sigma = policy.step(latents, torch.full((2,), i), embeddings)
            torch.testing.assert_close(mean + sigma * noise, expected, rtol=2e-5, atol=2e-5)


def test_rows_may_be_at_different_steps(diffusion):
    policy = make_policy(diffusion)
    latents, embeddings = draw(0, 3, 4, 8, 8), diffusion.encode(["a", "b", "c"])
    index = torch.tensor([0, 49, 17])
    with torch.no_grad():
        mean, sigma = policy.step(latents, index, embeddings)
        for row in range(3):
            part = slice(row, row + 1)
            alone = policy.step(latents[part], index[part], embeddings[part])
            torch.testing.assert_close(mean[part], alone[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(sigma[part], alone[1], rtol=0, atol=0)


def test_log_prob_is_the_mean_normal_log_density():
    mean, value = draw(0, 5, 4, 8, 8), draw(1, 5, 4, 8, 8)
    sigma = torch.tensor([1.0, 0.5, 0.1, 0.02, 3.0]).view(-1, 1, 1, 1)
    expected = Normal(mean, sigma).log_prob(value).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_log_prob(mean, sigma, value), expected)


def test_guidance_is_the_weighted_sum_of_two_separate_predictions(diffusion):
    policy = make_policy(diffusion, guidance_scale=3.0)
    latents, timesteps = draw(0, 2, 4, 8, 8), torch.tensor([901, 21])
    embeddings = diffusion.encode(["a", "b"])
    with torch.no_grad():
        conditional = diffusion.unet(latents, timesteps, embeddings).sample
        unconditional = diffusion.unet(latents, timesteps, diffusion.encode(["", ""])).sample
        guided = policy.guided_noise(latents, timesteps, embeddings)
        unguided = make_policy(diffusion, guidance_scale=1.0).guided_noise(
            latents, timesteps, embeddings
        )
    expected = 3.0 * conditional + (1 - 3.0) * unconditional
    assert (conditional - unconditional).abs().max() > 1e-3
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unguided, conditional)


def test_a_trajectory_is_scored_as_it_was_sampled(diffusion):
    policy = make_policy(diffusion, steps=6)
    noise, embeddings = draw(0, 3, 7, 4, 8, 8), diffusion.encode(["a", "b", "a"])
    path = policy.sample(embeddings, noise)
    assert torch.equal(path.latents[:, 0], noise[:, 0])
    assert path.latents.dtype == path.log_probs.dtype == torch.float32
    for i in range(6):
        again = policy.log_prob(
            path.latents[:, i], path.latents[:, i + 1], torch.full((3,), i), embeddings
        )
        assert torch.equal(again.detach(), path.log_probs[:, i])
        assert again.requires_grad
    repeated = policy.sample(embeddings, noise)
    assert torch.equal(repeated.latents, path.latents)


def test_the_sampler_is_that_of_the_pipeline(diffusion):
    diffusion.pipeline.scheduler = diffusion.scheduler
    policy = make_policy(diffusion, steps=6, guidance_scale=4.0)
    noise = draw(0, 1, 7, 4, 8, 8)
    path = policy.sample(diffusion.encode(["a"]), noise)
    remaining = list(noise[:, 1:].unbind(1))
    with pytest.MonkeyPatch.context() as patch:
        # Hand diffusers the noise of the trajectory in place of random numbers.
        patch.setattr(
            "diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: remaining.pop(0)
        )
        latents = diffusion.pipeline(
            "a",
            num_inference_steps=6,
            guidance_scale=4.0,
            eta=1.0,
            latents=noise[:, 0],
            output_type="latent",
        ).images
    assert not remaining
    torch.testing.assert_close(path.latents[:, -1], latents, rtol=1e-4, atol=1e-4)


def test_a_schedule_without_noise_in_its_last_step_keeps_a_density(diffusion):
    config = {"set_alpha_to_one": True, "steps_offset": 0}
    scheduler = DDIMScheduler.from_config(diffusion.scheduler.config, **config)
    policy = make_policy(diffusion, scheduler, steps=5)
    path = policy.sample(diffusion.encode(["a"]), draw(0, 1, 6, 4, 8, 8))
    assert torch.isfinite(path.latents).all()
    assert torch.isfinite(path.log_probs).all()
    sigma = policy.step(path.latents[:, 4], torch.tensor([4]), diffusion.encode(["a"]))[1]
    assert sigma.item() == pytest.approx(SIGMA_MIN)


def test_models_it_is_not_made_for_are_refused(diffusion):
    velocity = DDIMScheduler.from_config(diffusion.scheduler.config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="v_prediction"):
        make_policy(diffusion, velocity)
    with pytest.raises(ValueError, match="only 1000 steps"):
        make_policy(diffusion, steps=1001)
