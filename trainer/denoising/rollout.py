"""One iteration's experience: images sampled, scored while the next are sampled, and gathered."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salon.errors import InvalidRequest, RewardFailed
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.policy import DenoisingPolicy, Trajectory
from trainer.rewards.scorer import RewardScorer, ScoredBatch, submit_rows
from trainer.runtime.ranks import Ranks
from trainer.runtime.seeds import generator
from trainer.spec.prompts.rows import Row

POLL_SECONDS = 0.25  # how often ranks that wait for scores tell each other whether they can go on


@dataclass(frozen=True)
class Rollout:
    """The N samples of an iteration that got every reward, in the order of their batches.

    What is small is of all ranks; latents and what goes with them are of the n samples that this
    rank sampled, all of them if it is alone.
    """

    keys: list[str]  # N, each of the row that it is a sample of; those of one key are a group
    batches: NDArray[np.int64]  # [N] the number of the batch that each was sampled in
    per_reward: dict[str, NDArray[np.float64]]  # name -> [N], as the services gave them
    own: NDArray[np.int64]  # [n] which of the N this rank has
    conditioning: Conditioning  # of n samples
    latents: Tensor  # [n, T + 1, C, h, w] fp32; of images alone [n, 1, C, h, w]
    log_probs: Tensor  # [n, T] fp32, under the parameters that sampled; of images alone [n, 0]
    dropped: int  # samples that lack a reward, left out of all of the above
    sampled_after: int  # iterations: their updates made the parameters that sampled
    sampling_seconds: float
    reward_wait_seconds: float  # spent doing nothing but wait for scores, and for other ranks

    def rows_of(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        """What this rank has of `samples` [k], which number those of all ranks.

        Returns:
            the places of the k where it has one, and the row of each among its own n, on the
            device.
        """
        places = np.flatnonzero(np.isin(samples, self.own))
        rows = torch.from_numpy(np.searchsorted(self.own, samples[places]))
        return places, rows.to(self.latents.device)


@dataclass(frozen=True)
class SampledBatch:
    """One batch of this rank, on its way to the jury and back."""

    number: int
    path: Trajectory
    scored: "Future[ScoredBatch]"


@dataclass(frozen=True)
class RolloutInFlight:
    """Sampled, but not yet scored."""

    iteration: int  # all that its randomness depends on, beside the seed
    sampled_after: int
    batches: list[SampledBatch]
    error: Exception | None  # that ended sampling early, for all ranks to agree on
    sampling_seconds: float


class Collector:
    """Samples images of rows drawn uniformly, and has them scored in the background.

    Batch b is sampled by rank b % count with randomness of its own: the samples do not depend on
    the number of ranks.

    Args:
        diffusion: encodes prompts and decodes latents.
        policy: samples them.
        scorer: gets each batch as uint8 images.
        rows: to draw from.
        samples: per iteration, on all ranks together, a multiple of `batch_size`.
        batch_size: samples at a time.
        seed: the job's.
        ranks: that share the batches.
        whole_paths: keep all T + 1 latents of a sample; False keeps the last, the image's.

    Raises:
        InvalidRequest: there are fewer batches than ranks.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        policy: DenoisingPolicy,
        scorer: RewardScorer,
        rows: Sequence[Row],
        *,
        samples: int,
        batch_size: int,
        seed: int,
        ranks: Ranks,
        whole_paths: bool = True,
    ) -> None:
        self._diffusion = diffusion
        self._policy = policy
        self._scorer = scorer
        self._rows = list(rows)
        self._batch_size = batch_size
        self._batches = samples // batch_size
        self._seed = seed
        self._ranks = ranks
        self._whole_paths = whole_paths
        if self._batches < ranks.count:
            raise InvalidRequest(
                f"{samples} samples in batches of {batch_size} are {self._batches} batches for "
                f"{ranks.count} processes: raise samples_per_iteration, lower sample_batch_size, "
                "or start fewer processes"
            )

    def collect(self, iteration: int) -> Rollout:
        """Sample, and wait for the rewards; see `start` and `finish`."""
        return self.finish(self.start(iteration, iteration))

    def start(self, iteration: int, sampled_after: int) -> RolloutInFlight:
        """Sample the batches of this rank, each handed to the scorer as soon as it is decoded.

        An error ends it early; it is raised by `finish`, where no rank waits for another in vain.

        Args:
            iteration: whose samples.
            sampled_after: how many iterations have made the parameters that sample.
        """
        start = time.perf_counter()
        batches: list[SampledBatch] = []
        error = None
        try:
            for number in self._own_batches():
                batches.append(self._sample(iteration, number))
        except Exception as failure:  # noqa: BLE001 -- none is lost: `finish` raises it
            error = failure
        seconds = time.perf_counter() - start
        return RolloutInFlight(iteration, sampled_after, batches, error, seconds)

    def finish(self, flight: RolloutInFlight) -> Rollout:
        """Wait for the scores of all ranks and put them together; a collective.

        Raises:
            RewardFailed: not one sample got every reward.
            SalonError: what the scorer's future raised, here or on another rank.
            Interrupted, RankLost: this rank could go on, another cannot.
        """
        start = time.perf_counter()
        self._wait(flight)
        answers = [batch.scored.result() for batch in flight.batches]
        scores, valid = self._gather(flight, answers)
        if not valid.any():
            reasons = [reason for answer in answers for reason in answer.errors]
            raise RewardFailed(
                f"none of the {valid.size} samples of this iteration got a reward"
                + (f": {reasons[0]}" if reasons else "")
            )
        waited = time.perf_counter() - start
        batch_of = np.arange(valid.size) // self._batch_size
        drawn = [row for b in range(self._batches) for row in self._drawn(flight.iteration, b)]
        kept = np.flatnonzero(valid)
        own = np.flatnonzero(batch_of[kept] % self._ranks.count == self._ranks.rank)
        here = np.isin(batch_of, [batch.number for batch in flight.batches])
        rows = torch.from_numpy(np.flatnonzero(valid[here])).to(self._diffusion.device)
        return Rollout(
            keys=[drawn[i].key for i in kept],
            batches=batch_of[kept],
            per_reward={name: values[kept] for name, values in scores.items()},
            own=own,
            conditioning=self._encode([drawn[i] for i in np.flatnonzero(here)])[rows],
            latents=torch.cat([batch.path.latents for batch in flight.batches])[rows],
            log_probs=torch.cat([batch.path.log_probs for batch in flight.batches])[rows],
            dropped=int(np.count_nonzero(~valid)),
            sampled_after=flight.sampled_after,
            sampling_seconds=flight.sampling_seconds,
            reward_wait_seconds=waited,
        )

    def tensors(self, flight: RolloutInFlight) -> dict[str, Tensor]:
        """What `resume` needs of it, of all ranks on each of them, on the CPU; a collective."""
        own = {batch.number: batch.path for batch in flight.batches}
        shapes = [
            (self._batch_size, *part.shape[1:])
            for part in (flight.batches[0].path.latents, flight.batches[0].path.log_probs)
        ]
        tensors = {}
        for number in range(self._batches):
            latents, log_probs = (torch.zeros(shape) for shape in shapes)
            if number in own:
                latents.copy_(own[number].latents)
                log_probs.copy_(own[number].log_probs)
            self._ranks.sum_([latents, log_probs])
            tensors[f"latents.{number}"], tensors[f"log_probs.{number}"] = latents, log_probs
        return tensors

    def resume(
        self, tensors: Mapping[str, Tensor], iteration: int, sampled_after: int
    ) -> RolloutInFlight:
        """Send to be scored again what was in flight, by any number of ranks, in `tensors`."""
        device = self._diffusion.device
        batches = [
            self._submit(
                iteration,
                number,
                Trajectory(
                    tensors[f"latents.{number}"].to(device),
                    tensors[f"log_probs.{number}"].to(device),
                ),
            )
            for number in self._own_batches()
        ]
        return RolloutInFlight(iteration, sampled_after, batches, None, 0.0)

    def _own_batches(self) -> range:
        return range(self._ranks.rank, self._batches, self._ranks.count)

    def _drawn(self, iteration: int, number: int) -> list[Row]:
        """The rows of a batch, of whichever rank."""
        random = generator(self._seed, iteration, "prompts", number)
        drawn = torch.randint(len(self._rows), (self._batch_size,), generator=random)
        return [self._rows[i] for i in drawn.tolist()]

    def _encode(self, rows: Sequence[Row]) -> Conditioning:
        return self._diffusion.encode([row.prompt for row in rows])

    def _sample(self, iteration: int, number: int) -> SampledBatch:
        shape = (self._batch_size, self._policy.steps + 1, *self._diffusion.latent_shape)
        random = generator(self._seed, iteration, "sampling", number)
        noise = torch.randn(shape, generator=random).to(self._diffusion.device)
        conditioning = self._encode(self._drawn(iteration, number))
        path = self._policy.sample(conditioning, noise)
        if not self._whole_paths:
            path = Trajectory(path.latents[:, -1:].clone(), path.log_probs[:, :0].clone())
        return self._submit(iteration, number, path)

    def _submit(self, iteration: int, number: int, path: Trajectory) -> SampledBatch:
        images = self._diffusion.decode(path.latents[:, -1])
        scored = submit_rows(self._scorer, images, self._drawn(iteration, number))
        return SampledBatch(number, path, scored)

    def _wait(self, flight: RolloutInFlight) -> None:
        """Until every rank has its scores; that one has not, for good, ends it for all soon."""
        futures = [batch.scored for batch in flight.batches]
        error, missing = flight.error, True
        while missing:
            if error is None:
                done, waiting = wait(futures, POLL_SECONDS, return_when=FIRST_EXCEPTION)
                failures = (future.exception() for future in futures if future in done)
                error = next((e for e in failures if isinstance(e, Exception)), None)
            self._ranks.agree(error)
            missing = self._ranks.largest(len(waiting)) > 0

    def _gather(
        self, flight: RolloutInFlight, answers: Sequence[ScoredBatch]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
        """Scores of each reward and whether they are all there, of all M samples, [M] each."""
        names = list(answers[0].per_reward)
        table = torch.zeros(self._batches, self._batch_size, len(names) + 1, dtype=torch.float64)
        for batch, answer in zip(flight.batches, answers, strict=True):
            columns = [*(answer.per_reward[name] for name in names), answer.valid]
            table[batch.number] = torch.from_numpy(np.stack(columns, axis=1))
        # The others have zeros there, so that the sum is what the owner has.
        self._ranks.sum_([table])
        *scores, valid = table.flatten(0, 1).numpy().T
        return dict(zip(names, scores, strict=True)), valid > 0
