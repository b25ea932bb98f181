"""Salon's DDPO as a contender, its rewards in-process or through gRPC and the queue."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.ddpo.contender import Answer, Stopwatch, peak_bytes, serve
from benchmarks.ddpo.gradients import Gradients
from benchmarks.ddpo.operations import count_operations, matmul_rate
from benchmarks.ddpo.workload import PROMPTS, Assignment
from benchmarks.training import InProcessScorer
from benchmarks.ways import REWARD, queue_scorer
from salon.memory import keep_freed_memory
from salon.settings import Settings
from trainer.ddpo.algorithm import DDPO
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.rewards.scorer import RewardScorer
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec


class SalonContender:
    """One DDPO on the prompts and the reward that every contender has."""

    def __init__(self, assignment: Assignment, scorer: RewardScorer) -> None:
        self._assignment = assignment
        self._config = ddpo_config(assignment)
        self._scorer = scorer
        self._ddpo = self._make(self._config)

    def _make(self, config: DDPOConfig) -> DDPO:
        diffusion = Diffusion.load(self._assignment.model, self._assignment.device)
        rewards = [RewardSpec(name=REWARD)]
        rows = [Row(prompt=prompt) for prompt in PROMPTS]
        return DDPO(diffusion, config, rows, rewards, self._scorer, self._assignment.seed)

    def iterate(self) -> Answer:
        """See `Contender.iterate`."""
        watch = Stopwatch(self._assignment.device)
        started = time.process_time()
        step = watch.time("seconds", self._ddpo.step)
        metrics = step.metrics
        return {
            **watch.seconds,
            "cpu_seconds": time.process_time() - started,
            "sampling": metrics["sampling_seconds"],
            "update": metrics["update_seconds"],
            "reward_wait": step.waited_seconds,
            "reward_mean": metrics["reward_mean"],
            "clip_fraction": metrics["clipfrac"],
            "peak_bytes": peak_bytes(self._assignment.device),
        }

    def write_case(self, out: str) -> Answer:
        """Write the samples of one update for `gradients`, of this and of another contender."""
        Gradients(self._assignment, self._config).write_case(Path(out))
        return {}

    def gradients(self, case: str, out: str, dtype: str) -> Answer:
        """See `Contender.gradients`."""
        gradients = Gradients(self._assignment, self._config)
        return {"loss": gradients.write(Path(case), Path(out), getattr(torch, dtype))}

    def operations(self) -> Answer:
        """Those of another model's first iteration, and what the machine can do in a second."""
        device, precision = self._assignment.device, self._assignment.precision
        counted = self._make(self._config.model_copy(update={"row_threads": 1}))
        return {
            "operations": count_operations(counted.step),
            "matmul_rate": matmul_rate(device, precision),
        }


def ddpo_config(assignment: Assignment) -> DDPOConfig:
    """The workload as hyperparameters of Salon's."""
    work = assignment.workload
    rank = work.lora_rank
    return DDPOConfig.model_validate(
        {
            "samples_per_iteration": work.samples,
            "sample_batch_size": work.sample_batch,
            "sampling_steps": work.steps,
            "guidance_scale": work.guidance_scale,
            "eta": work.eta,
            "updates_per_iteration": work.samples // work.update_samples,
            "clip_range": work.clip_range,
            "learning_rate": work.learning_rate,
            "weight_decay": work.weight_decay,
            "max_grad_norm": work.max_grad_norm,
            "advantage_clip": work.advantage_clip,
            "per_prompt_buffer": work.per_prompt_buffer,
            "per_prompt_min_count": work.per_prompt_min_count,
            "precision": assignment.precision,
            "tf32": assignment.device == "cuda",  # TRL's default
            "lora": {"rank": rank, "alpha": rank} if assignment.mode == "lora" else None,
            **assignment.algorithm,
        }
    )


@contextmanager
def build(assignment: Assignment) -> Iterator[SalonContender]:
    """With a scorer that lives as long as the block."""
    if assignment.settings is None:
        yield SalonContender(assignment, InProcessScorer())
        return
    with queue_scorer(Settings.model_validate(assignment.settings)) as scorer:
        yield SalonContender(assignment, scorer)


if __name__ == "__main__":
    keep_freed_memory()  # as `python -m trainer` does
    serve(build)
