"""RWR: sample, score, and regress onto the samples, each as much as its reward says."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.algorithm import Metrics, Preview, State
from trainer.denoising.finetuner import Finetuner
from trainer.diffusion import Diffusion
from trainer.interrupt import Interrupt
from trainer.ranks import Ranks
from trainer.rewards import reward_metrics, weighted_sum
from trainer.rollout import Collector, Rollout
from trainer.rwr.config import RWRConfig
from trainer.rwr.update import accumulate_gradient
from trainer.rwr.weights import (
    Weights,
    effective_samples,
    for_each_prompt,
    softmax_weights,
    sparse_weights,
)
from trainer.scoring import RewardScorer
from trainer.seeds import generator
from trainer.shares import stratified_shares
from trainer.spec import RewardSpec


class RWR:
    """Reward-weighted regression, iterated: Black et al. 2023 (arXiv 2305.13301, section 4.2).

    Each iteration draws its samples from the model as it is then, weights them by their rewards,
    and trains with the denoising loss of pre-training on them alone.

    Two things differ from the authors' code (github.com/jannerm/ddpo). x_0 is the latent that the
    sampler ended in; they encode the decoded image again, which adds the autoencoder's error to
    each iteration's data. And the optimiser keeps its moments from one iteration to the next; they
    start each iteration with a fresh one.

    Args:
        diffusion: the generator; gets adapters if the config says so.
        config: hyperparameters.
        prompts: those to train on; samples draw from them uniformly.
        rewards: what is maximised, all by group or none.
        scorer: gives the rewards, in the background.
        seed: of all randomness in training, together with the iteration.
        ranks: the processes that train together; None for this one alone. All of them call `step`,
            `state_dict` and `load_state_dict` together.
        keep_reference: have `kl`, which without LoRA costs a copy of the UNet.
        interrupt: ends a step midway.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        config: RWRConfig,
        prompts: Sequence[str],
        rewards: Sequence[RewardSpec],
        scorer: RewardScorer,
        seed: int,
        *,
        ranks: Ranks | None = None,
        keep_reference: bool = False,
        interrupt: Interrupt | None = None,
    ) -> None:
        self._ranks = ranks or Ranks.alone()
        self._finetuner = Finetuner(
            diffusion,
            config,
            prompts,
            seed,
            self._ranks,
            keep_reference=keep_reference,
            interrupt=interrupt,
        )
        self._collector = Collector(
            diffusion,
            self._finetuner.policy,
            scorer,
            prompts,
            samples=config.samples_per_iteration,
            batch_size=config.sample_batch_size,
            seed=seed,
            ranks=self._ranks,
            whole_paths=False,
        )
        self._config = config
        self._rewards = tuple(rewards)
        self._seed = seed
        self._iteration = 0

    def step(self) -> Metrics:
        """One iteration: sample, score, update.

        Nothing changes before all rewards are there: an exception raised while waiting for them
        leaves the state as it was. One raised later leaves a state between two iterations.

        Raises:
            RewardFailed: no sample got a reward.
            Interrupted: asked to stop, here or on another rank.
            RankFailed: another rank cannot go on.
            SalonError: training diverged.
        """
        rollout = self._collector.collect(self._iteration)
        rewards = weighted_sum(self._rewards, rollout.per_reward, rollout.prompts)
        weights = self._weights(rewards, rollout.prompts)
        start = time.perf_counter()
        updates = list(self._updates(rollout, weights))
        losses, norms = (torch.stack(part) for part in zip(*updates, strict=True))
        self._ranks.sum_([losses])
        metrics = {
            **reward_metrics(rewards, rollout.per_reward),
            "samples": float(len(rewards)),
            "dropped": float(rollout.dropped),
            "kept_samples": float(np.count_nonzero(weights)),
            "effective_samples": effective_samples(weights),
            "weight_max": float(weights.max()),
            "updates": float(len(losses)),
            "loss": float(losses.mean()),
            "grad_norm": float(norms.mean()),
            "sampling_seconds": rollout.sampling_seconds,
            "reward_wait_seconds": rollout.reward_wait_seconds,
        }
        metrics["update_seconds"] = time.perf_counter() - start
        self._iteration += 1
        return metrics

    def _weights(self, rewards: NDArray[np.float64], prompts: Sequence[str]) -> Weights:
        config = self._config
        if config.weighting == "softmax":
            weigh = partial(softmax_weights, inverse_temperature=config.inverse_temperature)
        else:
            weigh = partial(sparse_weights, percentile=config.percentile)
        return for_each_prompt(weigh, rewards, prompts) if config.per_prompt else weigh(rewards)

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
                loss = accumulate_gradient(
                    self._finetuner,
                    rollout.latents[rows, -1],
                    rollout.conditioning[rows],
                    torch.from_numpy(weights[samples[places]]).float().to(device),
                    places=torch.from_numpy(places),
                    count=len(samples),
                    rows_per_forward=config.rows_per_forward,
                    random=generator(*key, number),
                )
                yield loss, self._finetuner.apply_gradient()

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """See `Finetuner.generate`."""
        return self._finetuner.generate(prompts, seeds)

    def kl(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float64]:
        """See `Finetuner.kl`."""
        return self._finetuner.kl(prompts, seeds)

    def preview(self) -> Preview:
        """See `Finetuner.preview`."""
        return self._finetuner.preview()

    def save(self, folder: Path) -> None:
        """See `Finetuner.save`."""
        self._finetuner.save(folder)

    def state_dict(self) -> State:
        """All that an exact resume needs; randomness is a function of seed and iteration."""
        return {
            "tensors": self._finetuner.state(),
            "state": {"iteration": self._iteration},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken: the next step is the one it would have been.

        Raises:
            ValueError: the state is of another model or of other trainable parameters.
        """
        self._finetuner.restore(state["tensors"])
        self._iteration = state["state"]["iteration"]
