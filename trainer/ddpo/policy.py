"""The denoising process as a policy: each DDIM step is a Gaussian to sample from and to score."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

# A step without noise has no density. Stable Diffusion's schedule has its smallest sigma, 0.02, at
# the last step; a schedule that ends in sigma 0 (set_alpha_to_one, or steps_offset 0) gets this
# much noise there: too little to see, enough that this step's gradient, which grows as 1/sigma,
# does not drown the others.
SIGMA_MIN = 5e-3


@dataclass(frozen=True)
class Trajectory:
    """Denoising paths of N samples over T steps, fp32, on the device of the UNet."""

    latents: Tensor  # [N, T + 1, C, h, w]: x_T first, x_0 last
    log_probs: Tensor  # [N, T]: of the step from latents[:, i] to latents[:, i + 1]


class DenoisingPolicy:
    """p_θ(x_{t-1} | x_t, c) = N(μ_θ(x_t, c, t), sigma_t² I), equation 2 of Black et al. 2023.

    μ and sigma are those of DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16) under
    the guided noise prediction. All coefficients are tabulated on the device, so that no step of
    sampling or training waits for the host.

    Args:
        unet: predicts noise (`prediction_type` epsilon).
        scheduler: gives the noise schedule and the timesteps.
        steps: denoising steps T.
        eta: DDIM's noise scale, in (0, 1].
        guidance_scale: w of classifier-free guidance; at 1 the unconditional half is left out.
        unconditional: [1, L, D] embedding of the empty prompt.

    Raises:
        ValueError: the scheduler does something other than predict noise, or has too few steps.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        *,
        steps: int,
        eta: float,
        guidance_scale: float,
        unconditional: Tensor,
    ) -> None:
        prediction, trained = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
        if prediction != "epsilon":
            raise ValueError(
                f"the model's scheduler has prediction_type {prediction!r}; DDPO is implemented "
                "for 'epsilon' (Stable Diffusion 1.x)"
            )
        if steps > trained:
            raise ValueError(f"sampling_steps is {steps}, but the model has only {trained} steps")
        self.steps = steps
        self._unet = unet
        self._guidance_scale = guidance_scale
        self._unconditional = unconditional
        self._tabulate(scheduler, eta, unconditional.device)

    def _tabulate(self, scheduler: DDIMScheduler, eta: float, device: torch.device) -> None:
        scheduler.set_timesteps(self.steps)
        timesteps = scheduler.timesteps
        previous = timesteps - scheduler.config.num_train_timesteps // self.steps
        alphas = scheduler.alphas_cumprod.double()
        alpha = alphas[timesteps]
        # Before the first timestep the schedule has no entry: diffusers keeps one apart for it.
        alpha_previous = torch.where(
            previous >= 0, alphas[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double()
        )
        variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
        sigma = (eta * variance.sqrt()).clamp(min=SIGMA_MIN)
        direction = (1 - alpha_previous - sigma**2).clamp(min=0).sqrt()
        scale = (alpha_previous / alpha).sqrt()
        # Equation 12 with its prediction of x_0 written out is linear in x_t and the noise.
        self._from_latents = scale.float().to(device)
        self._from_noise = (direction - scale * (1 - alpha).sqrt()).float().to(device)
        self._sigma = sigma.float().to(device)
        self._timesteps = timesteps.to(device)
        self._all_steps = torch.arange(self.steps, device=device)

    def guided_noise(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Classifier-free guidance, equation 3 (appendix E.1) of Black et al. 2023.

        Args:
            latents: [N, C, h, w].
            timesteps: [N] int64, of the schedule the model was trained with.
            embeddings: [N, L, D] of the prompts.

        Returns:
            [N, C, h, w] w·ε(x_t, t, c) + (1 - w)·ε(x_t, t).
        """
        if self._guidance_scale == 1.0:
            return cast(Tensor, self._unet(latents, timesteps, embeddings, return_dict=False)[0])
        both: Tensor = self._unet(
            torch.cat([latents, latents]),
            torch.cat([timesteps, timesteps]),
            torch.cat([self._unconditional.expand_as(embeddings), embeddings]),
            return_dict=False,
        )[0]
        unconditional, conditional = both.chunk(2)
        return unconditional + self._guidance_scale * (conditional - unconditional)

    def step(self, latents: Tensor, index: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian of one denoising step, each row at a step of its own.

        Args:
            latents: [N, C, h, w] x_t.
            index: [N] int64, which step: 0 is the first (noisiest), T - 1 the last.
            embeddings: [N, L, D].

        Returns:
            mean [N, C, h, w] and sigma [N, 1, 1, 1].
        """
        noise = self.guided_noise(latents, self._timesteps[index], embeddings)
        mean = _per_row(self._from_latents, index) * latents
        mean = mean + _per_row(self._from_noise, index) * noise
        return mean, _per_row(self._sigma, index)

    def log_prob(
        self, latents: Tensor, next_latents: Tensor, index: Tensor, embeddings: Tensor
    ) -> Tensor:
        """[N] log p_θ(next_latents | latents), see `gaussian_log_prob`; arguments as of `step`."""
        mean, sigma = self.step(latents, index, embeddings)
        return gaussian_log_prob(mean, sigma, next_latents)

    def sample(self, embeddings: Tensor, noise: Tensor) -> Trajectory:
        """Denoise N samples; without gradient, and a function of its arguments alone.

        Args:
            embeddings: [N, L, D].
            noise: [N, T + 1, C, h, w] standard normal: x_T, then the noise of each step.
        """
        count = len(noise)
        # Made outside of inference mode, so that training may use them.
        latents = torch.empty_like(noise)
        log_probs = noise.new_empty(count, self.steps)
        with torch.inference_mode():
            latents[:, 0] = noise[:, 0]
            for i in range(self.steps):
                index = self._all_steps[i].expand(count)
                mean, sigma = self.step(latents[:, i], index, embeddings)
                latents[:, i + 1] = mean + sigma * noise[:, i + 1]
                log_probs[:, i] = gaussian_log_prob(mean, sigma, latents[:, i + 1])
        return Trajectory(latents, log_probs)


def gaussian_log_prob(mean: Tensor, sigma: Tensor, value: Tensor) -> Tensor:
    """Log-density of N(mean, sigma² I) at `value`, as a *mean* over the dimensions of a row.

    A mean, where a density has a sum: it makes the ratio comparable across latent sizes, and it is
    what the paper's clip range of 1e-4 was tuned for (kvablack/ddpo-pytorch, jannerm/ddpo).

    Args:
        mean: [N, C, h, w].
        sigma: [N, 1, 1, 1].
        value: [N, C, h, w].

    Returns:
        [N].
    """
    density = -0.5 * ((value - mean) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def _per_row(table: Tensor, index: Tensor) -> Tensor:
    return table[index].view(-1, 1, 1, 1)
