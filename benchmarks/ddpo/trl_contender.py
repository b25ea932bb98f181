"""TRL's DDPOTrainer as a contender; `python -m benchmarks.ddpo.trl_contender` in TRL's environment.

It imports nothing of Salon, which is not installed there.
"""

import io
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file, save_file
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

from benchmarks.ddpo.contender import Answer, Stopwatch, peak_bytes, serve
from benchmarks.ddpo.workload import PROMPTS, Assignment

PRECISIONS = {"fp32": "no", "bf16": "bf16"}


def draw_prompt() -> tuple[str, dict[str, Any]]:
    """A prompt and its metadata, as the trainer asks for them."""
    return random.choice(PROMPTS), {}


def score(images: torch.Tensor, *_: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Minus the kilobytes of each image [3, H, W] in [0, 1] as a JPEG of quality 95."""
    pixels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    kilobytes = []
    for array in pixels.cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, format="JPEG", quality=95)
        kilobytes.append(file.tell() / 1000)
    return -np.array(kilobytes), {}


class TimedTrainer(DDPOTrainer):
    """Measures the two halves of an iteration, and keeps its mean reward."""

    watch: Stopwatch
    reward_mean: float

    def _generate_samples(self, *args: Any, **options: Any) -> Any:
        return self.watch.time(
            "sampling", lambda: super(TimedTrainer, self)._generate_samples(*args, **options)
        )

    def _train_batched_samples(self, *args: Any, **options: Any) -> Any:
        return self.watch.time(
            "update", lambda: super(TimedTrainer, self)._train_batched_samples(*args, **options)
        )

    def compute_rewards(self, *args: Any, **options: Any) -> Any:
        """As the trainer's own."""
        rewards, metadata = super().compute_rewards(*args, **options)
        self.reward_mean = float(torch.cat(rewards).mean())
        return rewards, metadata


class TrlContender:
    """One DDPOTrainer; its advantages are those of per-prompt statistics, as Salon's are."""

    def __init__(self, assignment: Assignment, folder: str) -> None:
        self._assignment = assignment
        on_cpu = assignment.device == "cpu"
        PartialState(cpu=on_cpu)  # before its constructor logs, which raises otherwise
        random.seed(assignment.seed)
        pipeline = DefaultDDPOStableDiffusionPipeline(
            assignment.model, use_lora=assignment.mode == "lora"
        )
        self._trainer = TimedTrainer(_config(assignment, folder), score, draw_prompt, pipeline)
        pipeline.set_progress_bar_config(disable=True)
        self._unet = pipeline.unet
        self._epoch = self._updates = 0

    def iterate(self) -> Answer:
        """See `Contender.iterate`."""
        watch = self._trainer.watch = Stopwatch(self._assignment.device)

        def step() -> None:
            self._updates = self._trainer.step(self._epoch, self._updates)

        started = time.process_time()
        watch.time("seconds", step)
        self._epoch += 1
        return {
            **watch.seconds,
            "cpu_seconds": time.process_time() - started,
            "reward_mean": self._trainer.reward_mean,
            "peak_bytes": peak_bytes(self._assignment.device),
        }

    def gradients(self, case: str, out: str, dtype: str) -> Answer:
        """See `Contender.gradients`: the trainer's own loss, timestep by timestep."""
        scheduler, before = self._trainer.sd_pipeline.scheduler, self._unet.dtype
        self._convert(getattr(torch, dtype))
        device = self._trainer.accelerator.device
        tensors = {
            name: tensor.to(device, self._unet.dtype) for name, tensor in load_file(case).items()
        }
        parameters = dict(self._unet.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.requires_grad and self._assignment.mode == "lora":
                    parameter.copy_(tensors[f"parameter/{name}"])
        latents, log_probs = tensors["latents"], tensors["log_probs"]
        count, steps = log_probs.shape
        # What sampling would have done: the step's noise depends on the number of steps.
        scheduler.set_timesteps(steps, device=device)
        timesteps = scheduler.timesteps
        embeddings = torch.cat(
            [tensors["unconditional"].expand_as(tensors["embeddings"]), tensors["embeddings"]]
        )
        total = 0.0
        for i in range(steps):
            loss, _, _ = self._trainer.calculate_loss(
                latents[:, i],
                timesteps[i].expand(count),
                latents[:, i + 1],
                log_probs[:, i],
                tensors["advantages"],
                embeddings,
            )
            (loss / steps).backward()
            total += loss.item() / steps
        gradients = {n: p.grad.contiguous() for n, p in parameters.items() if p.grad is not None}
        save_file(gradients, out)
        self._trainer.optimizer.zero_grad()
        self._convert(before)
        return {"loss": total}

    def _convert(self, dtype: torch.dtype) -> None:
        """The UNet, and the noise schedule that the trainer derives every step from."""
        self._unet.to(dtype)
        scheduler = self._trainer.sd_pipeline.scheduler
        for name in ("alphas_cumprod", "final_alpha_cumprod"):
            setattr(scheduler, name, getattr(scheduler, name).to(dtype))


def _config(assignment: Assignment, folder: str) -> DDPOConfig:
    work = assignment.workload
    return DDPOConfig(
        seed=assignment.seed,
        mixed_precision=PRECISIONS[assignment.precision],
        num_epochs=sys.maxsize,
        save_freq=sys.maxsize,  # by default each epoch ends with a checkpoint
        sample_num_steps=work.steps,
        sample_eta=work.eta,
        sample_guidance_scale=work.guidance_scale,
        sample_batch_size=work.sample_batch,
        sample_num_batches_per_epoch=work.samples // work.sample_batch,
        train_batch_size=work.update_samples,
        train_learning_rate=work.learning_rate,
        train_adam_weight_decay=work.weight_decay,
        train_max_grad_norm=work.max_grad_norm,
        train_clip_range=work.clip_range,
        train_adv_clip_max=work.advantage_clip,
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=work.per_prompt_buffer,
        per_prompt_stat_tracking_min_count=work.per_prompt_min_count,
        accelerator_kwargs={"cpu": True} if assignment.device == "cpu" else {},
        project_kwargs={"project_dir": folder},
    )


@contextmanager
def build(assignment: Assignment) -> Iterator[TrlContender]:
    """With a folder for what it writes, deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="trl-") as folder:
        yield TrlContender(assignment, folder)


if __name__ == "__main__":
    serve(build)
