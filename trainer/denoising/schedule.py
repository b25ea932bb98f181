"""The Gaussian of each denoising step as coefficients, tabulated once."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

# A step without noise has no density. Stable Diffusion's schedule has its smallest sigma, 0.02, at
# the last step of DDIM; a schedule that ends in sigma 0 (set_alpha_to_one, steps_offset 0, DDPM's
# fixed_small) gets this much noise there: too little to see, enough that this step's gradient,
# which grows as 1/sigma, does not drown the others.
SIGMA_MIN = 5e-3

_VARIANCES = ("fixed_small", "fixed_large")


@dataclass(frozen=True)
class Schedule:
    """x_{t-1} ~ N(from_latents·x_t + from_output·model_output, sigma² I) for each of T steps.

    All tables are on the device, so that no step of sampling or training waits for the host.
    """

    timesteps: Tensor  # [T] int64, of the schedule the model was trained with; noisiest first
    from_latents: Tensor  # [T] fp32
    from_output: Tensor  # [T] fp32
    sigma: Tensor  # [T] fp32, at least SIGMA_MIN
    alphas_cumprod: Tensor  # [number of training timesteps] fp32

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def of(
        cls,
        scheduler: DDIMScheduler | DDPMScheduler,
        *,
        steps: int,
        eta: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "Schedule":
        """Tabulate the steps that `scheduler` would take.

        Args:
            scheduler: DDIM or DDPM, without clipping; its number of steps is set.
            steps: denoising steps T.
            eta: DDIM's noise scale, in (0, 1]; DDPM has none.
            device: where the tables go.
            dtype: of the tables; float64 to compare with arithmetic that is exact.

        Raises:
            ValueError: the scheduler's steps are no Gaussians that are linear in the model's
                output, or it has too few steps.
        """
        _check(scheduler, steps)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        if timesteps.max() >= len(scheduler.alphas_cumprod):
            raise ValueError(
                f"sampling_steps {steps} from the scheduler's steps_offset "
                f"{scheduler.config.steps_offset} on reach timestep {timesteps.max()}, but the "
                f"model's last is {len(scheduler.alphas_cumprod) - 1}: take fewer steps"
            )
        alpha, alpha_previous = _alphas(scheduler, timesteps)
        x0, noise = _predictions(scheduler.config.prediction_type, alpha)
        if isinstance(scheduler, DDIMScheduler):
            variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
            sigma = (eta * variance.sqrt()).clamp(min=SIGMA_MIN)
            direction = (1 - alpha_previous - sigma**2).clamp(min=0).sqrt()
            from_latents, from_output = alpha_previous.sqrt() * x0 + direction * noise
        else:
            step_alpha = alpha / alpha_previous
            variance = 1 - step_alpha
            if scheduler.config.variance_type == "fixed_small":
                variance = (1 - alpha_previous) / (1 - alpha) * variance
            # diffusers takes timestep 0 without noise, whatever the variance.
            sigma = torch.where(timesteps > 0, variance, 0).sqrt().clamp(min=SIGMA_MIN)
            from_latents, from_output = alpha_previous.sqrt() * (1 - step_alpha) / (1 - alpha) * x0
            from_latents = from_latents + step_alpha.sqrt() * (1 - alpha_previous) / (1 - alpha)
        return cls(
            timesteps.to(device),
            from_latents.to(device, dtype),
            from_output.to(device, dtype),
            sigma.to(device, dtype),
            scheduler.alphas_cumprod.to(device, dtype),
        )


def _check(scheduler: Any, steps: int) -> None:
    if not isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        raise ValueError(  # noqa: TRY004 -- a scheduler's class is a choice, as its numbers are
            f"{type(scheduler).__name__} has no Gaussian steps to learn from; use DDIMScheduler or "
            "DDPMScheduler, which read the same configuration"
        )
    config = scheduler.config
    if config.clip_sample or config.thresholding:
        raise ValueError(
            "the scheduler has clip_sample or thresholding, which latents are not made for; turn "
            "both off"
        )
    if isinstance(scheduler, DDPMScheduler) and config.variance_type not in _VARIANCES:
        raise ValueError(
            f"the scheduler has variance_type {config.variance_type!r}; take one of {_VARIANCES}"
        )
    if steps > config.num_train_timesteps:
        raise ValueError(
            f"sampling_steps is {steps}, but the model has only {config.num_train_timesteps} steps"
        )


def _alphas(scheduler: DDIMScheduler | DDPMScheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ at each timestep and at the one that its step leads to, [T] each, in double precision."""
    alphas = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, DDIMScheduler):
        previous = timesteps - scheduler.config.num_train_timesteps // len(timesteps)
        last = scheduler.final_alpha_cumprod.double()
    else:
        previous = torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
        last = scheduler.one.double()
    # Before the first timestep the schedule has no entry: diffusers keeps one apart for it.
    return alphas[timesteps], torch.where(previous >= 0, alphas[previous.clamp(min=0)], last)


def _predictions(prediction_type: str, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 and noise as the model's output tells them, each [2, T]: factors of x_t and output.

    From x_t = √ᾱ x_0 + √(1-ᾱ) ε; the velocity is v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans and Ho 2022, arXiv
    2202.00512, appendix D).

    Raises:
        ValueError: the type is another one, or x_0 cannot be told from it where x_t is pure noise.
    """
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "epsilon":
        if (alpha == 0).any():
            raise ValueError(
                "prediction_type 'epsilon' says nothing about an image that is still pure noise, "
                "as the scheduler's first step is (rescale_betas_zero_snr); turn that off or use a "
                "timestep_spacing other than 'trailing'"
            )
        return torch.stack([1 / signal, -noise / signal]), torch.stack([zero, one])
    if prediction_type == "v_prediction":
        return torch.stack([signal, -noise]), torch.stack([noise, signal])
    if prediction_type == "sample":
        return torch.stack([zero, one]), torch.stack([1 / noise, -signal / noise])
    raise ValueError(
        f"the model's scheduler has prediction_type {prediction_type!r}; known are 'epsilon', "
        "'v_prediction' and 'sample'"
    )
