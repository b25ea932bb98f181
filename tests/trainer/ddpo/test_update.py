"""The accumulated gradient against an independent loop over timesteps."""

import copy
import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from trainer.ddpo.config import DDPOConfig
from trainer.ddpo.timesteps import chosen_timesteps
from trainer.ddpo.update import Share, update
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.runtime.ranks import Ranks

STEPS, COUNT, CLIP, GUIDANCE = 5, 6, 1e-3, 4.0


class Experience:
    """Samples of a policy, and advantages; then the policy moves, so that some ratios clip.

    The UNets are in float64 from then on: a difference to the reference is then one of mathematics.
    """

    def __init__(self, diffusion, **changes):
        values = {"sampling_steps": STEPS, "guidance_scale": GUIDANCE, "clip_range": CLIP}
        self.config = DDPOConfig(**{**values, **changes})
        self.diffusion = diffusion
        self.start = copy.deepcopy(diffusion.unet).double()
        self.finetuner = Finetuner(diffusion, self.config, ["a"], seed=0, keep_reference=True)
        random = torch.Generator().manual_seed(0)
        embeddings = diffusion.encode(list("abcabc")).embeddings
        path = self.finetuner.policy.sample(
            Conditioning(embeddings), torch.randn(COUNT, STEPS + 1, 4, 8, 8, generator=random)
        )
        advantages = torch.randn(COUNT, generator=random).double()
        timesteps = chosen_timesteps(COUNT, STEPS, self.config.timestep_fraction, random)
        with torch.no_grad():
            for parameter in diffusion.trainable().values():
                parameter.add_(2e-3 * torch.randn(parameter.shape, generator=random))
        diffusion.unet.double()
        if self.config.lora is None:
            self.finetuner.policy._reference.double()
        self.share = Share(
            path.latents.double(),
            path.log_probs.double(),
            Conditioning(embeddings.double()),
            advantages,
            timesteps,
            pairs=timesteps.numel(),
        )
        self.empty = diffusion.encode([""] * COUNT).embeddings.double()

    def accumulate(self, seed=1):
        """An update that ends before the step, with the gradient in the parameters."""
        optimization = self.finetuner.optimization
        optimization.apply_gradient, step = torch.zeros(()).clone, optimization.apply_gradient
        try:
            return self.update(seed)
        finally:
            optimization.apply_gradient = step

    def update(self, seed=1):
        options = ("estimator", "clip_range", "kl_weight", "rows_per_forward")
        return update(
            self.finetuner,
            self.share,
            torch.Generator().manual_seed(seed),
            Ranks.alone(),
            **{name: getattr(self.config, name) for name in options},
        )

    def naive(self):
        """By diffusers' scheduler, one timestep of all samples at a time, over chosen pairs."""
        scheduler = DDIMScheduler.from_config(self.diffusion.scheduler("ddim").config)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        scheduler.set_timesteps(STEPS)
        losses, outside, divergences = [], [], []
        share, advantages = self.share, self.share.advantages
        for i, timestep in enumerate(scheduler.timesteps):
            mean = self._mean(self.diffusion.unet, scheduler, timestep, share.latents[:, i])
            with torch.no_grad():
                reference = self._mean(self.start, scheduler, timestep, share.latents[:, i])
            sigma = math.sqrt(scheduler._get_variance(timestep, timestep - 1000 // STEPS))
            gaussian = Normal(mean, sigma)
            log_prob = gaussian.log_prob(share.latents[:, i + 1]).mean(dim=(1, 2, 3))
            ratio = torch.exp(log_prob - share.log_probs[:, i])
            clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
            divergence = kl_divergence(gaussian, Normal(reference, sigma)).mean(dim=(1, 2, 3))
            if self.config.estimator == "importance":
                loss = -torch.minimum(advantages * ratio, advantages * clipped)
            else:
                loss = -advantages * log_prob
            chosen = (share.timesteps == i).any(dim=1)
            losses.append((loss + self.config.kl_weight * divergence)[chosen])
            outside.append(((ratio < 1 - CLIP) | (ratio > 1 + CLIP))[chosen])
            divergences.append(divergence[chosen])
        parts = (torch.cat(part).double().mean() for part in (losses, outside, divergences))
        return tuple(parts)

    def _mean(self, unet, scheduler, timestep, latents):
        conditional = unet(latents, timestep, self.share.conditioning.embeddings).sample
        unconditional = unet(latents, timestep, self.empty).sample
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        zeros = torch.zeros_like(latents)
        return scheduler.step(guided, timestep, latents, eta=1.0, variance_noise=zeros).prev_sample


def relative_difference(parameters, expected):
    difference = [(p.grad - g).flatten() for p, g in zip(parameters, expected, strict=True)]
    return torch.cat(difference).norm() / torch.cat([g.flatten() for g in expected]).norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"rows_per_forward": 1},
        {"rows_per_forward": 7},
        {"rows_per_forward": 1000},
        {"rows_per_forward": 7, "row_threads": 2},
        {"rows_per_forward": 1000, "row_threads": 3, "kl_weight": 0.7, "lora": {"rank": 2}},
        {"timestep_fraction": 0.5, "rows_per_forward": 4},
        {"kl_weight": 0.7},
        {"kl_weight": 0.7, "lora": {"rank": 2}},
        {"estimator": "score_function"},
        {"estimator": "score_function", "kl_weight": 0.3, "timestep_fraction": 0.3},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_gradient_is_that_of_the_naive_loop_however_it_is_grouped(diffusion, changes):
    experience = Experience(diffusion, **changes)
    parameters = list(diffusion.trainable().values())
    expected_loss, expected_fraction, expected_divergence = experience.naive()
    expected = torch.autograd.grad(expected_loss, parameters)
    statistics = experience.accumulate()
    assert relative_difference(parameters, expected) < 1e-5
    assert statistics.loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert statistics.clipfrac.item() == pytest.approx(expected_fraction.item())
    assert 0 < statistics.clipfrac < 1
    assert statistics.approx_kl > 0
    assert statistics.ratio_deviation > CLIP
    if experience.config.kl_weight > 0:
        assert expected_divergence > 0
        divergence = statistics.kl_reference.item()
        assert divergence == pytest.approx(expected_divergence.item(), rel=1e-5)


def test_a_pass_that_teaches_nothing_is_not_differentiated(diffusion):
    experience = Experience(diffusion, rows_per_forward=STEPS)  # a sample at a time
    experience.share.advantages[:4] = 0
    parameters = list(diffusion.trainable().values())
    expected = torch.autograd.grad(experience.naive()[0], parameters)
    backward, calls = experience.finetuner.optimization.backward, []

    def count(loss):
        calls.append(loss)
        backward(loss)

    experience.finetuner.optimization.backward = count
    experience.accumulate()
    assert 1 <= len(calls) <= 2
    assert relative_difference(parameters, expected) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_that_teaches_nothing_is_a_step_of_zero_gradient(diffusion, precision):
    experience = Experience(diffusion, precision=precision)
    experience.share.advantages.zero_()
    assert experience.update().grad_norm == 0
    steps = {int(v) for k, v in experience.finetuner.optimization.state().items() if ".step." in k}
    assert steps == {1}


def test_a_share_without_samples_adds_nothing(diffusion):
    experience = Experience(diffusion)
    share, none = experience.share, slice(0, 0)
    experience.share = Share(
        share.latents[none],
        share.log_probs[none],
        share.conditioning[none],
        share.advantages[none],
        share.timesteps[none],
        pairs=share.pairs,
    )
    statistics = experience.accumulate()
    assert statistics.loss == statistics.ratio_deviation == 0
    assert all(p.grad is None for p in diffusion.trainable().values())


def test_the_divergence_alone_draws_back_to_the_model_that_training_started_from(diffusion):
    experience = Experience(diffusion, kl_weight=1.0, estimator="score_function")
    experience.share.advantages.zero_()
    before = experience.naive()[2].item()
    experience.accumulate()
    with torch.no_grad():
        for parameter in diffusion.trainable().values():
            parameter.sub_(1e-4 * parameter.grad)
    assert experience.naive()[2].item() < before
