"""One gradient update: the mean loss over the steps of some samples, in bounded memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.conditioning import Conditioning
from trainer.ddpo.config import DDPOConfig
from trainer.ddpo.objective import clipped_objective, score_function_objective
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.gaussian import gaussian_kl, gaussian_log_prob
from trainer.ranks import Ranks


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


REDONE_BELOW = 0.6
"""Share of pairs that teach below which a pass is redone with them alone, not differentiated.

Differentiating a pass takes 1.8 times as long as the pass (a tiny UNet on a CPU, full and LoRA), so
doing it again for a share s of the pairs, with gradient, is the cheaper way if 2.8 s < 1.8.
"""


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

    The pairs go through the UNet `rows_per_forward` at a time, all timesteps of a sample together.
    A pair that is clipped has no gradient, and those of a sample tend to be clipped together: of a
    pass where few teach, these wait until they fill another, which alone is differentiated. The sum
    is the same however they are grouped.

    Args:
        finetuner: whose parameters are trained.
        share: this rank's samples, of which there may be none.
        config: estimator, clip_range, kl_weight and rows_per_forward.
        order: shuffles the samples.
        ranks: that have the update's other samples; the statistics are of all.
    """
    size, device = config.rows_per_forward, share.latents.device
    rows = torch.arange(share.timesteps.numel()).view(share.timesteps.shape)
    rows = rows[torch.randperm(len(rows), generator=order)].flatten().to(device)
    waiting = rows[:0]
    totals = share.latents.new_zeros(4)
    deviations = share.latents.new_zeros(ranks.count)
    for chunk in torch.split(rows, size) if len(rows) else ():
        passed = _pass(finetuner, share, config, chunk)
        totals += passed.sums
        deviations[ranks.rank] = torch.maximum(deviations[ranks.rank], passed.deviation)
        if passed.teaches.double().mean() >= REDONE_BELOW:
            finetuner.backward(passed.loss)
        else:
            waiting = torch.cat([waiting, chunk[passed.teaches]])
        del passed  # its graph, before there is another
        if len(waiting) >= size:
            finetuner.backward(_pass(finetuner, share, config, waiting[:size]).loss)
            waiting = waiting[size:]
    if len(waiting):
        finetuner.backward(_pass(finetuner, share, config, waiting).loss)
    ranks.sum_([totals, deviations])
    loss, kl, clipped, divergence = totals / share.pairs
    return UpdateStatistics(loss, kl, clipped, divergence, deviations.max())


@dataclass(frozen=True)
class _Pass:
    """What came of some pairs."""

    loss: Tensor  # [] their part of the update's mean loss, with gradient
    teaches: Tensor  # [N] bool, which pairs have a gradient
    sums: Tensor  # [4] of the first four fields of UpdateStatistics
    deviation: Tensor  # [] largest |ratio - 1|


def _pass(finetuner: Finetuner, share: Share, config: DDPOConfig, rows: Tensor) -> _Pass:
    """The pairs `rows` [N], which number all of `share`, sample by sample."""
    sample, index = rows // share.timesteps.shape[1], share.timesteps.flatten()[rows]
    conditioning, before = share.conditioning[sample], share.latents[sample, index]
    old, advantage = share.log_probs[sample, index], share.advantages[sample]
    mean, sigma = finetuner.policy.step(before, index, conditioning)
    log_prob = gaussian_log_prob(mean, sigma, share.latents[sample, index + 1])
    if config.estimator == "score_function":
        losses, teaches = score_function_objective(log_prob, advantage), advantage != 0
    else:
        losses, teaches = clipped_objective(log_prob, old, advantage, config.clip_range)
    divergence = torch.zeros_like(old)
    if config.kl_weight > 0:
        reference = finetuner.policy.reference_step(before, index, conditioning)
        divergence = gaussian_kl(mean, reference, sigma)
        losses, teaches = losses + config.kl_weight * divergence, torch.ones_like(teaches)
    log_ratio = log_prob.detach() - old
    off = torch.expm1(log_ratio).abs()
    sums = (losses.detach(), 0.5 * log_ratio**2, off > config.clip_range, divergence.detach())
    return _Pass(
        losses.sum() / share.pairs, teaches, torch.stack([part.sum() for part in sums]), off.max()
    )
