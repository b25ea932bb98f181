"""One gradient update: the mean clipped loss over all steps of some samples, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.ddpo.objective import clipped_objective
from trainer.ddpo.policy import DenoisingPolicy


@dataclass(frozen=True)
class UpdateStatistics:
    """Means over an update's (sample, timestep) pairs; scalars on the device, not yet awaited."""

    loss: Tensor
    approx_kl: Tensor  # ½ (log ratio)², as in both public implementations
    clip_fraction: Tensor  # share of pairs with a ratio outside of the clip range
    ratio_deviation: Tensor  # largest |ratio - 1|
    grad_norm: Tensor  # before it is scaled down


def accumulate_gradient(
    policy: DenoisingPolicy,
    latents: Tensor,
    log_probs: Tensor,
    embeddings: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    rows_per_forward: int,
    order: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add to the gradients that of the mean loss over all N·T (sample, timestep) pairs.

    The pairs go through the UNet in random order, `rows_per_forward` at a time, so that a pass
    holds a mixture of samples and timesteps; the sum is the same however they are grouped.

    Args:
        policy: whose parameters are trained.
        latents: [N, T + 1, C, h, w].
        log_probs: [N, T] under the parameters that sampled.
        embeddings: [N, L, D].
        advantages: [N].
        clip_range: of `clipped_objective`.
        rows_per_forward: pairs in one pass.
        order: shuffles the pairs.

    Returns:
        loss, approx_kl, clip_fraction, ratio_deviation of `UpdateStatistics`.
    """
    count, steps = log_probs.shape
    rows = torch.randperm(count * steps, generator=order).to(latents.device)
    totals = latents.new_zeros(3)
    deviation = latents.new_zeros(())
    for chunk in torch.split(rows, rows_per_forward):
        sample, index = chunk // steps, chunk % steps
        old = log_probs[sample, index]
        new = policy.log_prob(
            latents[sample, index], latents[sample, index + 1], index, embeddings[sample]
        )
        losses, ratio = clipped_objective(new, old, advantages[sample], clip_range)
        (losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        off = (ratio - 1).abs()
        kl = 0.5 * (new.detach() - old) ** 2
        totals += torch.stack([losses.detach().sum(), kl.sum(), (off > clip_range).sum()])
        deviation = torch.maximum(deviation, off.max())
    loss, kl, clipped = totals / len(rows)
    return loss, kl, clipped, deviation


def apply_gradient(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_grad_norm: float
) -> Tensor:
    """Scale the gradient down to `max_grad_norm`, step, clear it; return its norm before that."""
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
