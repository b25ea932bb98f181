"""RWR: sample, score, and regress onto the samples, each as much as its reward says."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.algorithm import Step
from trainer.context import Context
from trainer.denoising.algorithm import DenoisingAlgorithm, load_generator
from trainer.denoising.rollout import Rollout
from trainer.denoising.shares import stratified_shares
from trainer.rewards.weighting import reward_metrics, weighted_sum
from trainer.runtime.seeds import generator
from trainer.rwr.config import RWRConfig, RWRJob
from trainer.rwr.update import update
from trainer.rwr.weights import (
    Weights,
    effective_samples,
    for_each_prompt,
    softmax_weights,
    sparse_weights,
)


class RWR(DenoisingAlgorithm[RWRConfig]):
    """Reward-weighted regression, iterated: Black et al. 2023 (arXiv 2305.13301, section 4.2).

    Each iteration draws its samples from the model as it is then, weights them by their rewards,
    and trains with the denoising loss of pre-training on them alone.

    Two things differ from the authors' code (github.com/jannerm/ddpo). x_0 is the latent that the
    sampler ended in; they encode the decoded image again, which adds the autoencoder's error to
    each iteration's data. And the optimiser keeps its moments from one iteration to the next; they
    start each iteration with a fresh one.
    """

    whole_paths = False

    def step(self) -> Step:
        """One iteration: sample, score, update. See `DenoisingAlgorithm.step`."""
        rollout = self._collector.collect(self._iteration)
        rewards = weighted_sum(self._rewards, rollout.per_reward, rollout.keys)
        weights = self._weights(rewards, rollout.keys)
        start = time.perf_counter()
        updates = list(self._updates(rollout, weights))
        losses, norms = (torch.stack(part) for part in zip(*updates, strict=True))
        self._ranks.sum_([losses])
        metrics = {
            **reward_metrics(rewards, rollout.per_reward),
            "dropped": float(rollout.dropped),
            "kept_samples": float(np.count_nonzero(weights)),
            "effective_samples": effective_samples(weights),
            "weight_max": float(weights.max()),
            "updates": float(len(losses)),
            "loss": float(losses.mean()),
            "grad_norm": float(norms.mean()),
            "sampling_seconds": rollout.sampling_seconds,
            "update_seconds": time.perf_counter() - start,
        }
        self._iteration += 1
        return Step(len(rewards), rollout.reward_wait_seconds, metrics)

    def _weights(self, rewards: NDArray[np.float64], keys: Sequence[str]) -> Weights:
        config = self._config
        if config.weighting == "softmax":
            weigh = partial(softmax_weights, inverse_temperature=config.inverse_temperature)
        else:
            weigh = partial(sparse_weights, percentile=config.percentile)
        return for_each_prompt(weigh, rewards, keys) if config.per_prompt else weigh(rewards)

    def _updates(self, rollout: Rollout, weights: Weights) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the updates, and give of each this rank's part of the loss, and the norm.

        Every epoch deals the samples that count out to its updates anew, all of them, in shares
        that differ by one at most.
        """
        config, device = self._config, self._finetuner.diffusion.device
        kept = np.flatnonzero(weights)
        updates = max(1, round(len(kept) / config.batch_size))
        for epoch in range(config.epochs):
            key = (self._seed, self._iteration, "regression", epoch)
            shares = stratified_shares(rollout.batches[kept], updates, generator(*key))
            for number, share in enumerate(shares):
                samples = kept[share.numpy()]
                places, rows = rollout.rows_of(samples)
                yield update(
                    self._finetuner,
                    rollout.latents[rows, -1],
                    rollout.conditioning[rows],
                    torch.from_numpy(weights[samples[places]]).float().to(device),
                    places=torch.from_numpy(places),
                    count=len(samples),
                    rows_per_forward=config.rows_per_forward,
                    random=generator(*key, number),
                )


def build(spec: RWRJob, context: Context) -> RWR:
    """The algorithm of a job, with what its process gives it."""
    return RWR(
        load_generator(spec, context),
        spec.algorithm,
        spec.prompts,
        spec.rewards,
        context.scorer([reward.name for reward in spec.rewards]),
        spec.seed,
        ranks=context.ranks,
        keep_reference=spec.evaluation.kl and context.ranks.first,  # which alone evaluates
        interrupt=context.interrupt,
    )
