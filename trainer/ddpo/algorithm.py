"""DDPO: sample, score, and raise the probability of the denoising steps that paid off."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.algorithm import Metrics, State, Step
from trainer.context import Context
from trainer.ddpo.advantages import PerPromptStatistics, batch_advantages, group_advantages
from trainer.ddpo.config import DDPOConfig, DDPOJob
from trainer.ddpo.timesteps import chosen_timesteps
from trainer.ddpo.update import Share, UpdateStatistics, update
from trainer.denoising.algorithm import DenoisingAlgorithm, load_generator
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.rollout import Rollout, RolloutInFlight
from trainer.denoising.shares import stratified_shares
from trainer.rewards.scorer import RewardScorer
from trainer.rewards.weighting import reward_metrics, weighted_sum
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks
from trainer.runtime.seeds import generator
from trainer.runtime.statistics import sample_std
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec

IN_FLIGHT = "in_flight."
"""Prefix of a checkpoint's tensors that are of a rollout rather than of the model."""


class DDPO(DenoisingAlgorithm[DDPOConfig]):
    """Denoising diffusion policy optimization, Black et al. 2023 (arXiv 2305.13301).

    With `staleness: 1` an iteration is sampled while the rewards of the one before arrive, by the
    parameters from before that one's updates. The importance ratio of DDPO-IS is taken against
    those: log p_θ_old is what the sampler itself recorded with each step. It corrects that step
    alone, not the state it starts from nor the steps after it, which are θ_old's, so the estimator
    is exact at θ_old and the less so the further p_θ is from it (section 4.3). Clipping bounds how
    far an update may go from θ_old, which is now up to two iterations away. Ratios then start
    outside of a narrow clip range, and pairs that are clipped teach nothing. DDPO-SF has no ratio
    to correct for that, and is refused. One rollout more is sampled than there are iterations: the
    one in flight when training ends.

    Beside the arguments of `DenoisingAlgorithm`:

    Args:
        debug: check in every iteration that its first update starts at ratio 1.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        config: DDPOConfig,
        rows: Sequence[Row],
        rewards: Sequence[RewardSpec],
        scorer: RewardScorer,
        seed: int,
        *,
        ranks: Ranks | None = None,
        keep_reference: bool = False,
        interrupt: Interrupt | None = None,
        debug: bool = False,
    ) -> None:
        super().__init__(
            diffusion,
            config,
            rows,
            rewards,
            scorer,
            seed,
            ranks=ranks,
            keep_reference=keep_reference or config.kl_weight > 0,
            interrupt=interrupt,
        )
        self._debug = debug
        self._ahead: RolloutInFlight | None = None
        self._statistics = PerPromptStatistics(
            config.per_prompt_buffer, config.per_prompt_min_count, config.advantage_clip
        )

    def step(self) -> Step:
        """One iteration: sample, score, update.

        See `DenoisingAlgorithm.step`.

        Raises:
            RuntimeError: in debug, the first update did not start at ratio 1.
        """
        now, collector = self._iteration, self._collector
        flight = self._ahead or collector.start(now, now)
        ahead = None
        if self._config.staleness:
            ahead = collector.start(now + 1, now)
            self._ranks.agree(ahead.error)
        rollout = collector.finish(flight)
        self._ahead = ahead
        del flight  # its paths would be in memory twice during the updates
        rewards = weighted_sum(self._rewards, rollout.per_reward, rollout.keys)
        advantages = self._advantages(rollout.keys, rewards)
        start = time.perf_counter()
        updates = list(self._updates(rollout, advantages))
        metrics = {
            **reward_metrics(rewards, rollout.per_reward),
            "dropped": float(rollout.dropped),
            "advantage_mean": float(advantages.mean()),
            "advantage_std": sample_std(advantages),
            **self._update_metrics(updates),
            "sampling_seconds": (ahead or rollout).sampling_seconds,
            "update_seconds": time.perf_counter() - start,
        }
        self._iteration += 1
        return Step(len(rewards), rollout.reward_wait_seconds, metrics)

    def _advantages(self, keys: Sequence[str], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._rewards[0].normalize == "group" or self._config.advantages == "global":
            return batch_advantages(rewards, self._config.advantage_clip)
        if self._config.advantages == "group":
            return group_advantages(keys, rewards, self._config.advantage_clip)
        return self._statistics.advantages(keys, rewards)

    def _updates(
        self, rollout: Rollout, advantages: NDArray[np.float64]
    ) -> Iterator[UpdateStatistics]:
        """Run the updates, each on an equal share of the samples; every pass shares anew."""
        config = self._config
        for epoch in range(config.inner_epochs):
            key = (self._seed, self._iteration, "shuffle", epoch)
            shares = stratified_shares(
                rollout.batches, config.updates_per_iteration, generator(*key)
            )
            for number, samples in enumerate(shares):
                statistics = update(
                    self._finetuner,
                    self._share(rollout, advantages, samples, (*key, number)),
                    generator(*key, number, "order"),
                    self._ranks,
                    estimator=config.estimator,
                    clip_range=config.clip_range,
                    kl_weight=config.kl_weight,
                    rows_per_forward=config.rows_per_forward,
                )
                if self._debug and epoch == number == 0:
                    self._check_on_policy(rollout, float(statistics.ratio_deviation))
                yield statistics

    def _share(
        self,
        rollout: Rollout,
        advantages: NDArray[np.float64],
        samples: Tensor,
        key: tuple[str | int, ...],
    ) -> Share:
        """What this rank has of `samples` [n], which number those of all ranks."""
        timesteps = chosen_timesteps(
            len(samples),
            self._finetuner.policy.steps,
            self._config.timestep_fraction,
            generator(*key, "timesteps"),
        )
        places, rows = rollout.rows_of(samples.numpy())
        here, device = samples[places], self._finetuner.diffusion.device
        return Share(
            rollout.latents[rows],
            rollout.log_probs[rows],
            rollout.conditioning[rows],
            torch.from_numpy(advantages)[here].float().to(device),
            timesteps[places].to(device),
            pairs=timesteps.numel(),
        )

    def _check_on_policy(self, rollout: Rollout, deviation: float) -> None:
        """Before the first update the policy is the one that sampled, so every ratio must be 1.

        Unless it was another: that of an iteration ago, with `staleness: 1`.
        """
        if rollout.sampled_after == self._iteration and deviation > self._config.clip_range:
            raise RuntimeError(
                f"iteration {self._iteration}: a probability ratio is off 1 by {deviation:.1e} "
                f"before the first update, beyond clip_range {self._config.clip_range:.1e}: "
                "sampling and training do not compute the same log-probability (reduced "
                "precision, TF32, dropout?)"
            )

    def _update_metrics(self, updates: Sequence[UpdateStatistics]) -> Metrics:
        """Means over the updates, except for the ratio, which only the first must have at 1."""
        names = ["loss", "approx_kl", "clipfrac", "grad_norm"]
        if self._config.kl_weight > 0:
            names.append("kl_reference")
        means = {
            name: float(torch.stack([getattr(update, name) for update in updates]).mean())
            for name in names
        }
        return {**means, "ratio_deviation_first": float(updates[0].ratio_deviation)}

    def state_dict(self) -> State:
        """All that an exact resume needs; randomness is a function of seed and iteration.

        Of a rollout in flight that is the paths: its rewards are asked for again on resume, which
        gives the same ones and makes no checkpoint wait for the jury.
        """
        kept = super().state_dict()
        kept["state"]["rewards"] = self._statistics.state_dict()
        if self._ahead is not None:
            paths = self._collector.tensors(self._ahead)
            kept["tensors"] |= {f"{IN_FLIGHT}{name}": value for name, value in paths.items()}
            kept["state"]["in_flight"] = [self._ahead.iteration, self._ahead.sampled_after]
        return kept

    def load_state_dict(self, state: State) -> None:
        """See `DenoisingAlgorithm.load_state_dict`."""
        tensors, kept = state["tensors"], state["state"]
        own = {name: value for name, value in tensors.items() if not name.startswith(IN_FLIGHT)}
        super().load_state_dict({"tensors": own, "state": kept})
        self._statistics.load_state_dict(kept["rewards"])
        self._ahead = None
        if "in_flight" in kept:
            paths = {name.removeprefix(IN_FLIGHT): tensors[name] for name in tensors.keys() - own}
            self._ahead = self._collector.resume(paths, *kept["in_flight"])


def build(spec: DDPOJob, context: Context) -> DDPO:
    """The algorithm of a job, with what its process gives it."""
    return DDPO(
        load_generator(spec, context),
        spec.algorithm,
        spec.prompts,
        spec.rewards,
        context.scorer([reward.name for reward in spec.rewards]),
        spec.seed,
        ranks=context.ranks,
        keep_reference=spec.evaluation.kl and context.ranks.first,  # which alone evaluates
        interrupt=context.interrupt,
        debug=context.debug,
    )
