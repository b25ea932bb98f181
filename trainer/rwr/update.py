"""One gradient update: the weighted denoising loss, backward, step, in bounded memory."""

import torch
from torch import Tensor

from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.rwr.objective import add_noise, regression_target, squared_error


def update(
    finetuner: Finetuner,
    samples: Tensor,
    conditioning: Conditioning,
    weights: Tensor,
    *,
    places: Tensor,
    count: int,
    rows_per_forward: int,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One step of the optimiser, along the gradient of (1/N) Σ weight · (target - prediction)².

    Each of the update's N samples is noised once, to a timestep that is uniform over all that the
    model was trained with. The prediction is the guided one and the gradient goes through both of
    its halves (Black et al. 2023, appendix E.1: without it the model deteriorates after the first
    iteration).

    Args:
        finetuner: whose parameters are trained.
        samples: [n, C, h, w] x_0, those of the N that this rank has.
        conditioning: of n samples.
        weights: [n].
        places: [n] int64, where among the N each is: its noise and timestep depend on that alone.
        count: N, the update's samples on all ranks.
        rows_per_forward: samples in one pass; changes memory and speed, never the gradient.
        random: draws the noise and the timesteps of all N, on the CPU.

    Returns:
        [] this rank's part of the loss, and the norm of the gradient of all; on the device.

    Raises:
        Interrupted: asked to stop; no step was taken.
        SalonError: the gradient is not finite.
    """
    device = samples.device
    alphas_cumprod = finetuner.policy.schedule.alphas_cumprod
    prediction_type = finetuner.diffusion.pipeline.scheduler.config.prediction_type
    timesteps = torch.randint(len(alphas_cumprod), (count,), generator=random)
    noise = torch.randn((count, *samples.shape[1:]), generator=random)
    timesteps, noise = timesteps[places].to(device), noise[places].to(device)
    total = samples.new_zeros(())
    every = torch.arange(len(samples), device=device)
    for rows in torch.split(every, rows_per_forward) if len(every) else ():
        alphas = alphas_cumprod[timesteps[rows]]
        noised = add_noise(samples[rows], noise[rows], alphas)
        target = regression_target(samples[rows], noise[rows], alphas, prediction_type)
        prediction = finetuner.policy.predict(noised, timesteps[rows], conditioning[rows])
        loss = (weights[rows] * squared_error(prediction, target)).sum() / count
        finetuner.optimization.backward(loss)
        total += loss.detach()
    return total, finetuner.optimization.apply_gradient()
