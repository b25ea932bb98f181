"""DDPO's speed with the reward computed by the trainer itself, and with it behind the queue."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import portable
from benchmarks.rates import ratio, rotated, summarise
from benchmarks.ways import REWARD, queue_scorer, score_in_process
from salon.settings import Settings
from trainer.ddpo.algorithm import DDPO
from trainer.denoising.job import DenoisingJob
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.rewards.scorer import RewardScorer, ScoredBatch


class InProcessScorer:
    """Scores a batch before `submit` returns, on the thread that samples."""

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> "Future[ScoredBatch]":
        """A future that is done."""
        scores = score_in_process(images)
        future: Future[ScoredBatch] = Future()
        future.set_result(ScoredBatch({REWARD: scores}, np.isfinite(scores), ()))
        return future


class TimedScorer:
    """Adds up how long the trainer is busy in `submit`: scoring there, or handing over."""

    def __init__(self, scorer: RewardScorer) -> None:
        self.seconds = 0.0
        self._scorer = scorer

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> "Future[ScoredBatch]":
        """As the scorer inside."""
        start = time.perf_counter()
        try:
            return self._scorer.submit(images, prompts, metadata, references)
        finally:
            self.seconds += time.perf_counter() - start


class Painter:
    """One DDPO run and the figures of its iterations."""

    def __init__(self, spec: DenoisingJob, scorer: RewardScorer) -> None:
        self._scorer = TimedScorer(scorer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        diffusion = Diffusion.load(spec.model, device)
        self._ddpo = DDPO(
            diffusion, spec.algorithm, spec.prompts, spec.rewards, self._scorer, spec.seed
        )
        self.samples_per_second: list[float] = []
        self._submitting: list[float] = []
        self._waiting: list[float] = []

    def iterate(self) -> None:
        """One iteration."""
        self._scorer.seconds = 0.0
        start = time.perf_counter()
        step = self._ddpo.step()
        seconds = time.perf_counter() - start
        self.samples_per_second.append(step.samples / seconds)
        self._submitting.append(self._scorer.seconds / seconds)
        self._waiting.append(step.waited_seconds / seconds)

    def forget(self) -> None:
        """Drop the figures so far: those of the warm-up."""
        for figures in (self.samples_per_second, self._submitting, self._waiting):
            figures.clear()

    def summary(self) -> dict[str, Any]:
        """Medians and rounds; the fractions are of an iteration's time."""
        return {
            "samples_per_second": summarise(self.samples_per_second),
            "submit_fraction": median(self._submitting),
            "wait_fraction": median(self._waiting),
        }


def measure_training(settings: Settings, rounds: int, spec: DenoisingJob) -> dict[str, Any]:
    """Samples per second of DDPO both ways, iteration by iteration in turn.

    Both runs start from the same model and seed, so that each pair of iterations samples and
    updates the same.
    """
    with queue_scorer(settings) as scorer:
        painters = {"in_process": Painter(spec, InProcessScorer()), "queue": Painter(spec, scorer)}
        for painter in painters.values():
            painter.iterate()
            painter.forget()
        for turn in range(rounds):
            for name in rotated(list(painters), turn):
                painters[name].iterate()
    queue, in_process = painters["queue"], painters["in_process"]
    return {
        "model": portable(spec.model),
        "algorithm": spec.algorithm.model_dump(mode="json"),
        "torch_threads": torch.get_num_threads(),
        **{name: painter.summary() for name, painter in painters.items()},
        "ratios": {
            "queue/in_process": ratio(queue.samples_per_second, in_process.samples_per_second)
        },
    }
