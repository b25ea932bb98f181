"""The denoising policy against the pipelines' own sampler and plain guidance."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from trainer.denoising.conditioning import Conditioning
from trainer.denoising.policy import DenoisingPolicy
from trainer.denoising.schedule import Schedule

STEPS = 6


def make_policy(diffusion, scheduler=None, steps=STEPS, guidance_scale=5.0, **options):
    scheduler = scheduler or diffusion.scheduler("ddim")
    return DenoisingPolicy(
        diffusion.unet,
        Schedule.of(scheduler, steps=steps, eta=1.0, device=diffusion.device),
        guidance_scale=guidance_scale,
        unconditional=diffusion.unconditional(),
        **options,
    )


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["diffusion", "xl_diffusion"])
def either(request):
    """Stable Diffusion, and Stable Diffusion XL."""
    return request.getfixturevalue(request.param)


def test_rows_may_be_at_different_steps(either):
    policy = make_policy(either, steps=50)
    latents, conditioning = draw(0, 3, 4, 8, 8), either.encode(["a", "b", "c"])
    index = torch.tensor([0, 49, 17])
    with torch.no_grad():
        mean, sigma = policy.step(latents, index, conditioning)
        for row in range(3):
            part = slice(row, row + 1)
            alone = policy.step(latents[part], index[part], conditioning[part])
            torch.testing.assert_close(mean[part], alone[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(sigma[part], alone[1], rtol=0, atol=0)


def test_guidance_is_the_weighted_sum_of_two_separate_predictions(either):
    policy = make_policy(either, guidance_scale=3.0)
    latents, timesteps = draw(0, 2, 4, 8, 8), torch.tensor([901, 21])
    conditioning = either.encode(["a", "b"])

    def plain(told):
        added = {"text_embeds": told.pooled, "time_ids": told.time_ids}
        return either.unet(latents, timesteps, told.embeddings, added_cond_kwargs=added).sample

    with torch.no_grad():
        conditional = plain(conditioning)
        empty = either.unconditional()
        unconditional = plain(Conditioning.cat([empty, empty]))
        guided = policy.predict(latents, timesteps, conditioning)
        unguided = make_policy(either, guidance_scale=1.0).predict(latents, timesteps, conditioning)
    expected = 3.0 * conditional + (1 - 3.0) * unconditional
    assert (conditional - unconditional).abs().max() > 1e-3
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unguided, conditional)


def test_a_trajectory_is_scored_as_it_was_sampled(either):
    policy = make_policy(either)
    noise, conditioning = draw(0, 3, 7, 4, 8, 8), either.encode(["a", "b", "a"])
    path = policy.sample(conditioning, noise)
    assert torch.equal(path.latents[:, 0], noise[:, 0])
    assert path.latents.dtype == path.log_probs.dtype == torch.float32
    for i in range(6):
        again = policy.log_prob(
            path.latents[:, i], path.latents[:, i + 1], torch.full((3,), i), conditioning
        )
        assert torch.equal(again.detach(), path.log_probs[:, i])
        assert again.requires_grad
    repeated = policy.sample(conditioning, noise)
    assert torch.equal(repeated.latents, path.latents)


def assert_sampled_as_by_the_pipeline(diffusion, scheduler, prompt, **options):
    """Same generator, same latents and image; the pipeline draws x_T first, then each noise."""
    diffusion.pipeline.scheduler = scheduler
    policy = make_policy(diffusion, scheduler, guidance_scale=4.0)
    random = torch.Generator().manual_seed(11)
    noise = torch.stack([torch.randn(1, 4, 8, 8, generator=random) for _ in range(7)], dim=1)
    path = policy.sample(diffusion.encode([prompt]), noise)

    def render(kind):
        return diffusion.pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(11),
            output_type=kind,
            **options,
        ).images

    torch.testing.assert_close(path.latents[:, -1], render("latent"), rtol=1e-4, atol=1e-4)
    image = np.asarray(render("pil")[0]).astype(int)
    assert np.abs(diffusion.decode(path.latents[:, -1])[0] - image).max() <= 1
    assert image.std() > 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_is_that_of_the_pipeline(either, prediction):
    either.pipeline.scheduler.register_to_config(prediction_type=prediction)
    assert_sampled_as_by_the_pipeline(either, either.scheduler("ddim"), "a", eta=1.0)


def test_sampling_by_ddpm_is_that_of_the_pipeline(diffusion):
    # fixed_small's last step, without noise there, has a little here; fixed_large needs none.
    config = diffusion.scheduler("ddpm").config
    scheduler = DDPMScheduler.from_config(config, variance_type="fixed_large")
    assert_sampled_as_by_the_pipeline(diffusion, scheduler, "a")


def test_xl_without_zeros_takes_the_empty_prompt_for_none(xl_diffusion):
    zeros = xl_diffusion.unconditional()
    xl_diffusion.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert not torch.equal(xl_diffusion.unconditional().pooled, zeros.pooled)
    assert_sampled_as_by_the_pipeline(xl_diffusion, xl_diffusion.scheduler("ddim"), "b", eta=1.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_of_the_unet_alone(either, precision):
    exact = make_policy(either, guidance_scale=1.0)
    policy = make_policy(either, guidance_scale=1.0, precision=precision)
    noise, conditioning = draw(0, 3, 7, 4, 8, 8), either.encode(["a", "b", "a"])
    path = policy.sample(conditioning, noise)
    assert path.latents.dtype == path.log_probs.dtype == torch.float32
    index = torch.zeros(3, dtype=torch.int64)
    again = policy.log_prob(path.latents[:, 0], path.latents[:, 1], index, conditioning)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.detach(), path.log_probs[:, 0], rtol=0, atol=1e-6)
    rounded = policy.predict(path.latents[:, 0], policy.schedule.timesteps[index], conditioning)
    full = exact.predict(path.latents[:, 0], policy.schedule.timesteps[index], conditioning)
    assert not torch.equal(rounded, full)
    assert (rounded - full).norm() / full.norm() < 0.05


def test_the_reference_of_adapters_is_the_model_without_them(either):
    latents, conditioning = draw(0, 2, 4, 8, 8), either.encode(["a", "b"])
    index = torch.tensor([0, 5])
    with torch.no_grad():
        base, _ = make_policy(either).step(latents, index, conditioning)
    either.add_lora(rank=2, alpha=2, target_modules=("to_q", "to_v"), seed=0)
    parameters = list(either.trainable().values())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1)
    policy = make_policy(either)
    mean, _ = policy.step(latents, index, conditioning)
    expected = torch.autograd.grad(mean.sum(), parameters)
    mean, _ = policy.step(latents, index, conditioning)
    reference = policy.reference_step(latents, index, conditioning)
    torch.testing.assert_close(reference, base, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mean, base, atol=1e-3)
    assert not reference.requires_grad
    # Asking for it between forward and backward leaves the gradient alone.
    actual = torch.autograd.grad(((mean - reference) + reference).sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(parameter.requires_grad for parameter in parameters)


def test_without_a_reference_there_is_none(diffusion):
    latents, conditioning = draw(0, 1, 4, 8, 8), diffusion.encode(["a"])
    with pytest.raises(RuntimeError, match="keep_reference"):
        make_policy(diffusion).reference_step(latents, torch.tensor([0]), conditioning)
