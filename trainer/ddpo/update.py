"""One gradient update: loss, backward, step, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.ddpo.objective import clipped_objective, score_function_objective
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.gaussian import gaussian_kl, gaussian_log_prob
from trainer.runtime.ranks import Ranks

Estimator = Literal["importance", "score_function"]


@dataclass(frozen=True)
class UpdateStatistics:
    """Means over an update's (sample, timestep) pairs; scalars on the device, not yet awaited."""

    loss: Tensor
    approx_kl: Tensor  # ½ (log ratio)², as in both public implementations
    clipfrac: Tensor  # share of pairs with a ratio outside of the clip range
    kl_reference: Tensor  # exact KL to the model training started from; 0 if it has no weight
    ratio_deviation: Tensor  # largest |ratio - 1|
    grad_norm: Tensor  # of the gradient, before it was scaled down


@dataclass(frozen=True)
class Share:
    """What this rank has of the samples of an update: n of them, K timesteps of each."""

    latents: Tensor  # [n, T + 1, C, h, w]
    log_probs: Tensor  # [n, T] under the parameters that sampled
    conditioning: Conditioning  # of n samples
    advantages: Tensor  # [n]
    timesteps: Tensor  # [n, K] int64, the steps to train on, from 0, the noisiest
    pairs: int  # (sample, timestep) pairs of the update on all ranks


def update(
    finetuner: Finetuner,
    share: Share,
    order: torch.Generator,
    ranks: Ranks,
    *,
    estimator: Estimator,
    clip_range: float,
    kl_weight: float,
    rows_per_forward: int,
) -> UpdateStatistics:
    """One step of the optimiser, along the gradient of the mean loss over the update's pairs.

    Summed over the ranks, that is the gradient of (1/pairs) Σ (objective + kl_weight · KL(p_θ ‖
    p_ref)). The divergence is that of each step from the x_t that was sampled, as in DPOK (Fan et
    al. 2023, arXiv 2305.16381, section 4.2); like the log-probability it is a mean over latent
    dimensions where DPOK has a sum, so their proportion is the same.

    The pairs go through the UNet `rows_per_forward` at a time, all timesteps of a sample together:
    they tend to be clipped together, and a pass of which every pair is has no gradient to be
    computed. The sum is the same however they are grouped. Two ways to differentiate no clipped
    pair at all were measured to gain nothing: finding out first, by passes without gradient, and
    passing those that teach again where less than 0.6 of a pass do.

    Args:
        finetuner: whose parameters are trained.
        share: this rank's samples, of which there may be none.
        order: shuffles the samples.
        ranks: that have the update's other samples; the statistics are of all.
        estimator: of the policy gradient.
        clip_range: ε of the importance ratio.
        kl_weight: of the divergence from the model that training started from.
        rows_per_forward: (sample, timestep) pairs in one pass.

    Raises:
        Interrupted: asked to stop; no step was taken.
        SalonError: the gradient is not finite.
    """
    policy, optimization = finetuner.policy, finetuner.optimization
    totals, deviation = share.latents.new_zeros(4), share.latents.new_zeros(ranks.count)
    for sample, index in _passes(share.timesteps, rows_per_forward, order):
        latents, conditioning = share.latents[sample, index], share.conditioning[sample]
        old_log_prob, advantage = share.log_probs[sample, index], share.advantages[sample]

        mean, sigma = policy.step(latents, index, conditioning)
        log_prob = gaussian_log_prob(mean, sigma, share.latents[sample, index + 1])
        if estimator == "score_function":
            losses, teaches = score_function_objective(log_prob, advantage), advantage != 0
        else:
            losses, teaches = clipped_objective(log_prob, old_log_prob, advantage, clip_range)
        divergence = torch.zeros_like(old_log_prob)
        if kl_weight > 0:
            reference = policy.reference_step(latents, index, conditioning)
            divergence = gaussian_kl(mean, reference, sigma)
            losses = losses + kl_weight * divergence
        if kl_weight > 0 or teaches.any():
            optimization.backward(losses.sum() / share.pairs)

        log_ratio = log_prob.detach() - old_log_prob
        off = torch.expm1(log_ratio).abs()
        sums = (losses.detach(), 0.5 * log_ratio**2, off > clip_range, divergence.detach())
        totals += torch.stack([values.sum() for values in sums])
        deviation[ranks.rank] = torch.maximum(deviation[ranks.rank], off.max())
    ranks.sum_([totals, deviation])
    loss, kl, clipped, divergence = totals / share.pairs
    norm = optimization.apply_gradient()
    return UpdateStatistics(loss, kl, clipped, divergence, deviation.max(), norm)


def _passes(
    timesteps: Tensor, rows_per_forward: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sample [R] and timestep [R] of the pairs of each pass, samples shuffled.

    Args:
        timesteps: [n, K] of n samples.
        rows_per_forward: R, of the last pass less.
        order: shuffles.
    """
    rows = torch.arange(timesteps.numel()).view(timesteps.shape)
    rows = rows[torch.randperm(len(rows), generator=order)].flatten().to(timesteps.device)
    for chunk in torch.split(rows, rows_per_forward) if len(rows) else ():
        yield chunk // timesteps.shape[1], timesteps.flatten()[chunk]
