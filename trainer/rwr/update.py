"""One gradient update: the weighted denoising loss of some samples, in bounded memory."""

import torch
from torch import Tensor

from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.rwr.objective import add_noise, regression_target, squared_error


def accumulate_gradient(
    finetuner: Finetuner,
    samples: Tensor,
    conditioning: Conditioning,
    weights: Tensor,
    *,
    places: Tensor,
    count: int,
    rows_per_forward: int,
    random: torch.Generator,
) -> Tensor:
    """Add to the gradients this rank's part of that of (1/N) Σ weight · (target - prediction)².

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
        [] this rank's part of the loss, on the device.
    """
    device = samples.device
    alphas_cumprod = finetuner.policy.schedule.alphas_cumprod
    prediction_type = finetuner.diffusion.pipeline.scheduler.config.prediction_type
    timesteps = torch.randint(len(alphas_cumprod), (count,), generator=random)
    noise = torch.randn((count, *samples.shape[1:]), generator=random)
    timesteps, noise = timesteps[places].to(device), noise[places].to(device)
    total = samples.new_zeros(())

    def passed(part: slice) -> tuple[Tensor, Tensor]:
        rows = slice(start + part.start, start + part.stop)
        alphas = alphas_cumprod[timesteps[rows]]
        noised = add_noise(samples[rows], noise[rows], alphas)
        target = regression_target(samples[rows], noise[rows], alphas, prediction_type)
        prediction = finetuner.policy.predict(noised, timesteps[rows], conditioning[rows])
        loss = (weights[rows] * squared_error(prediction, target)).sum() / count
        return loss, loss.detach()

    for start in range(0, len(samples), rows_per_forward):
        rows = min(rows_per_forward, len(samples) - start)
        with finetuner.policy.shared_prefix():
            total += torch.stack(finetuner.optimization.backward(passed, rows)).sum()
    return total
