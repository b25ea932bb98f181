"""What all algorithms that train a denoising policy on scored samples are made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from trainer.algorithm import Preview, State, Step
from trainer.context import Context
from trainer.denoising.config import DenoisingConfig
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.job import DenoisingJob
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.rollout import Collector
from trainer.rewards.scorer import RewardScorer
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec

log = structlog.get_logger()

ConfigT = TypeVar("ConfigT", bound=DenoisingConfig)


class DenoisingAlgorithm(ABC, Generic[ConfigT]):
    """A `trainer.algorithm.Algorithm` but for its `step`, and a `Generator`, and `Divergent`.

    Args:
        diffusion: the generator; gets adapters if the config says so.
        config: hyperparameters.
        rows: those to train on; samples draw from them uniformly.
        rewards: what is maximised, all by group or none.
        scorer: gives the rewards, in the background.
        seed: of all randomness in training, together with the iteration.
        ranks: the processes that train together; None for this one alone. All of them call `step`,
            `state_dict` and `load_state_dict` together.
        keep_reference: have `kl`, which without LoRA costs a copy of the UNet.
        interrupt: ends a step midway.
    """

    whole_paths: ClassVar[bool] = True
    """Whether the update needs all of a sample's denoising path, or x_0 alone."""

    def __init__(
        self,
        diffusion: Diffusion,
        config: ConfigT,
        rows: Sequence[Row],
        rewards: Sequence[RewardSpec],
        scorer: RewardScorer,
        seed: int,
        *,
        ranks: Ranks | None = None,
        keep_reference: bool = False,
        interrupt: Interrupt | None = None,
    ) -> None:
        self._config = config
        self._rewards = tuple(rewards)
        self._seed = seed
        self._iteration = 0
        self._ranks = ranks or Ranks.alone()
        self._finetuner = Finetuner(
            diffusion,
            config,
            [row.prompt for row in rows],
            seed,
            self._ranks,
            keep_reference=keep_reference,
            interrupt=interrupt,
        )
        self._collector = Collector(
            diffusion,
            self._finetuner.policy,
            scorer,
            rows,
            samples=config.samples_per_iteration,
            batch_size=config.sample_batch_size,
            seed=seed,
            ranks=self._ranks,
            whole_paths=self.whole_paths,
        )

    @abstractmethod
    def step(self) -> Step:
        """One iteration: sample, score, update.

        Nothing changes before all rewards are there: an exception raised while waiting for them
        leaves the state as it was. One raised later leaves a state between two iterations.

        Raises:
            RewardFailed: no sample got a reward.
            Interrupted: asked to stop, here or on another rank.
            SalonError: training diverged, or another rank cannot go on.
        """

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
            "tensors": self._finetuner.optimization.state(),
            "state": {"iteration": self._iteration},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken: the next step is the one it would have been.

        Raises:
            ValueError: the state is of another model or of other trainable parameters.
        """
        self._finetuner.optimization.restore(state["tensors"])
        self._iteration = state["state"]["iteration"]


def load_generator(spec: DenoisingJob, context: Context) -> Diffusion:
    """The pipeline that a job names, once its prompts were read as its text encoders read them.

    Raises:
        InvalidRequest: it cannot be trained, or a held-out prompt is a training prompt to it.
    """
    log.info("loading", model=spec.model, ranks=context.ranks.count)
    context.stage(f"loading {spec.model}")
    diffusion = Diffusion.load(spec.model, context.ranks.device)
    trained, held_out = ([row.prompt for row in rows] for rows in spec.rows.values())
    for text in diffusion.prompt_reader.check(trained, held_out):
        context.warn(text)
    return diffusion
