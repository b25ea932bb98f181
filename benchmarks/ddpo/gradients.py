"""The gradient of one update by Salon's own code, on samples that another trainer can read."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.ddpo.workload import PROMPTS, Assignment
from trainer.ddpo.config import DDPOConfig
from trainer.ddpo.update import Share, update
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.schedule import Schedule
from trainer.runtime.ranks import Ranks

ADAPTER_SCALE = 0.05
"""Standard deviation of the adapters' second factors. They start at zero, where the first factors
have no gradient that could be compared."""
OFFSETS = (-3.0, -0.3, 0.3, 3.0)  # of old log-probabilities, in clip ranges


class Gradients:
    """A model of its own, so that the one that is timed stays as it is."""

    def __init__(self, assignment: Assignment, config: DDPOConfig) -> None:
        self._assignment = assignment
        self._config = config
        diffusion = Diffusion.load(assignment.model, assignment.device)
        self._finetuner = Finetuner(diffusion, config, PROMPTS, assignment.seed)
        self._generator = torch.Generator().manual_seed(assignment.seed)
        for name, parameter in self._finetuner.parameters.items():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=self._generator)
                parameter.data.copy_(ADAPTER_SCALE * noise)

    def write_case(self, out: Path) -> None:
        """Write latents, log_probs, embeddings, advantages and what training changes.

        The old log-probabilities are off, so that some of the ratios are clipped, on either side,
        and none so little that rounding would decide.
        """
        policy, diffusion = self._finetuner.policy, self._finetuner.diffusion
        count = self._assignment.workload.update_samples
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
        shape = (count, policy.steps + 1, *diffusion.latent_shape)
        noise = torch.randn(shape, generator=self._generator).to(diffusion.device)
        conditioning = diffusion.encode(prompts)
        path = policy.sample(conditioning, noise)
        chosen = torch.randint(len(OFFSETS), path.log_probs.shape, generator=self._generator)
        off = self._config.clip_range * torch.tensor(OFFSETS)[chosen].to(diffusion.device)
        save_file(
            {
                "latents": path.latents,
                "log_probs": path.log_probs + off,
                "embeddings": conditioning.embeddings,
                "unconditional": diffusion.encode([""]).embeddings,
                "advantages": torch.randn(count, generator=self._generator),
                **{f"parameter/{name}": p for name, p in self._finetuner.parameters.items()},
            },
            out,
        )

    def write(self, case: Path, out: Path, dtype: torch.dtype) -> float:
        """Write the gradient of every parameter by its name, before any clipping of its norm.

        Args:
            case: what `write_case` wrote.
            out: where to.
            dtype: of the UNet and of all that it is given.

        Returns:
            The loss.
        """
        device = self._assignment.device
        diffusion, policy = self._finetuner.diffusion, self._finetuner.policy
        diffusion.unet.to(dtype)
        policy.schedule = Schedule.of(
            diffusion.scheduler(self._config.scheduler),
            steps=policy.steps,
            eta=self._config.eta,
            device=diffusion.device,
            dtype=dtype,
        )
        tensors = {name: tensor.to(device, dtype) for name, tensor in load_file(case).items()}
        count, steps = tensors["log_probs"].shape
        share = Share(
            tensors["latents"],
            tensors["log_probs"],
            Conditioning(tensors["embeddings"], None, None),
            tensors["advantages"],
            timesteps=torch.arange(steps, device=device).expand(count, steps),
            pairs=count * steps,
        )
        order = torch.Generator().manual_seed(self._assignment.seed)
        # The gradient is looked at, not followed.
        self._finetuner.optimization.apply_gradient = torch.zeros(()).clone  # type: ignore[method-assign]
        options = ("estimator", "clip_range", "kl_weight", "rows_per_forward")
        statistics = update(
            self._finetuner,
            share,
            order,
            Ranks.alone(),
            **{name: getattr(self._config, name) for name in options},
        )
        gradients = {
            name: parameter.grad.contiguous()
            for name, parameter in self._finetuner.parameters.items()
            if parameter.grad is not None
        }
        save_file(gradients, out)
        return float(statistics.loss)
