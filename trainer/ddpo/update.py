"""One gradient update: the mean loss over the steps of some samples, in bounded memory."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from trainer.ddpo.config import DDPOConfig
from trainer.ddpo.objective import clipped_objective, score_function_objective
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.gaussian import gaussian_kl, gaussian_log_prob
from trainer.denoising.policy import DenoisingPolicy
from trainer.runtime.ranks import Ranks


@dataclass(frozen=True)
class UpdateStatistics:
    """Means over an update's (sample, timestep) pairs; scalars on the device, not yet awaited."""

    loss: Tensor
    approx_kl: Tensor  # ½ (log ratio)², as in both public implementations
    clipfrac: Tensor  # share of pairs with a ratio outside of the clip range
    kl_reference: Tensor  # exact KL to the model training started from; 0 if it has no weight
    ratio_deviation: Tensor  # largest |ratio - 1|


@dataclass(frozen=True)
class Share:
    """What this rank has of the samples of an update: n of them, K timesteps of each."""

    latents: Tensor  # [n, T + 1, C, h, w]
    log_probs: Tensor  # [n, T] under the parameters that sampled
    conditioning: Conditioning  # of n samples
    advantages: Tensor  # [n]
    timesteps: Tensor  # [n, K] int64, the steps to train on, from 0, the noisiest
    pairs: int  # (sample, timestep) pairs of the update on all ranks


@dataclass(frozen=True)
class Pairs:
    """R (sample, timestep) pairs of a share, a row each."""

    latents: Tensor  # [R, C, h, w] x_t
    next_latents: Tensor  # [R, C, h, w] x_{t-1}
    index: Tensor  # [R] int64, which step
    conditioning: Conditioning
    log_prob: Tensor  # [R] of the step under the parameters that sampled
    advantage: Tensor  # [R]
    reference: Tensor | None = None  # [R, C, h, w] mean under the model training started from

    def __getitem__(self, rows: slice) -> "Pairs":
        """Some of them."""
        return Pairs(
            self.latents[rows],
            self.next_latents[rows],
            self.index[rows],
            self.conditioning[rows],
            self.log_prob[rows],
            self.advantage[rows],
            None if self.reference is None else self.reference[rows],
        )


def accumulate_gradient(
    finetuner: Finetuner,
    share: Share,
    config: DDPOConfig,
    order: torch.Generator,
    ranks: Ranks,
) -> UpdateStatistics:
    """Add to the gradients this rank's part of those of the mean loss over the update's pairs.

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
        config: estimator, clip_range, kl_weight and rows_per_forward.
        order: shuffles the samples.
        ranks: that have the update's other samples; the statistics are of all.
    """
    latents, steps = share.latents, share.timesteps
    rows = torch.arange(steps.numel()).view(steps.shape)
    rows = rows[torch.randperm(len(rows), generator=order)].flatten().to(latents.device)
    totals = latents.new_zeros(4)
    deviations = latents.new_zeros(ranks.count)
    for chunk in torch.split(rows, config.rows_per_forward) if len(rows) else ():
        pairs = _pairs(share, chunk)
        if config.kl_weight > 0:
            before = pairs.latents, pairs.index, pairs.conditioning
            pairs = replace(pairs, reference=finetuner.policy.reference_step(*before))
        passed = partial(_loss, finetuner.policy, pairs, config, share.pairs)
        with finetuner.policy.shared_prefix():
            parts = finetuner.optimization.backward(passed, len(chunk))
        for sums, deviation in parts:
            totals += sums
            deviations[ranks.rank] = torch.maximum(deviations[ranks.rank], deviation)
    ranks.sum_([totals, deviations])
    loss, kl, clipped, divergence = totals / share.pairs
    return UpdateStatistics(loss, kl, clipped, divergence, deviations.max())


def _pairs(share: Share, rows: Tensor) -> Pairs:
    """Those that `rows` [R] numbers: sample by sample, the K timesteps of each in turn."""
    steps = share.timesteps
    sample, index = rows // steps.shape[1], steps.flatten()[rows]
    return Pairs(
        latents=share.latents[sample, index],
        next_latents=share.latents[sample, index + 1],
        index=index,
        conditioning=share.conditioning[sample],
        log_prob=share.log_probs[sample, index],
        advantage=share.advantages[sample],
    )


def _loss(
    policy: DenoisingPolicy, pairs: Pairs, config: DDPOConfig, count: int, part: slice
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """What a part of `pairs` adds to the mean over `count`, None where it has no gradient.

    Beside it [4], the sums of losses, ½ (log ratio)², clipped pairs and divergences, and the
    largest |ratio - 1|.
    """
    pairs = pairs[part]
    mean, sigma = policy.step(pairs.latents, pairs.index, pairs.conditioning)
    log_prob = gaussian_log_prob(mean, sigma, pairs.next_latents)
    old, advantage = pairs.log_prob, pairs.advantage
    if config.estimator == "score_function":
        losses, teaches = score_function_objective(log_prob, advantage), advantage != 0
    else:
        losses, teaches = clipped_objective(log_prob, old, advantage, config.clip_range)
    divergence = torch.zeros_like(old)
    if pairs.reference is not None:
        divergence = gaussian_kl(mean, pairs.reference, sigma)
        losses = losses + config.kl_weight * divergence
    log_ratio = log_prob.detach() - old
    off = torch.expm1(log_ratio).abs()
    sums = (losses.detach(), 0.5 * log_ratio**2, off > config.clip_range, divergence.detach())
    loss = losses.sum() / count if config.kl_weight > 0 or teaches.any() else None
    return loss, (torch.stack([part.sum() for part in sums]), off.max())
