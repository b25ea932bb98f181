"""The denoising process as a policy: each step is a Gaussian to sample from and to score."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from trainer.denoising.conditioning import Conditioning
from trainer.denoising.gaussian import gaussian_log_prob
from trainer.denoising.lora import fused_lora, has_lora, without_lora
from trainer.denoising.precision import Precision, autocast
from trainer.denoising.row_threads import RowThreads
from trainer.denoising.schedule import Schedule
from trainer.denoising.shared_prefix import shared_prefix


@dataclass(frozen=True)
class Trajectory:
    """Denoising paths of N samples over T steps, fp32, on the device of the UNet."""

    latents: Tensor  # [N, T + 1, C, h, w]: x_T first, x_0 last
    log_probs: Tensor  # [N, T]: of the step from latents[:, i] to latents[:, i + 1]


class DenoisingPolicy:
    """p_θ(x_{t-1} | x_t, c) = N(μ_θ(x_t, c, t), sigma_t² I), equation 2 of Black et al. 2023.

    μ and sigma are those of DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16) or DDPM
    (Ho et al. 2020, arXiv 2006.11239, equation 7) under the guided prediction. The UNet alone may
    run in reduced precision: whatever follows from its output is computed in that of the latents.

    Args:
        unet: predicts what the schedule was made for.
        schedule: the steps.
        guidance_scale: w of classifier-free guidance; at 1 the unconditional half is left out.
        unconditional: of one sample: what the UNet is told when it is told no prompt.
        precision: of the UNet's arithmetic.
        reference: the UNet that training started from, for `reference_step`; a UNet with adapters
            needs none beside it.
        threads: that share the rows of a pass, and the samples of `sample`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: Schedule,
        *,
        guidance_scale: float,
        unconditional: Conditioning,
        precision: Precision = "fp32",
        reference: UNet2DConditionModel | None = None,
        threads: RowThreads | None = None,
    ) -> None:
        self.schedule = schedule
        self._unet = unet
        self._guidance_scale = guidance_scale
        self._unconditional = unconditional
        self._precision = precision
        self._reference = reference
        self._threads = threads or RowThreads()
        self._device = schedule.timesteps.device
        self._all_steps = torch.arange(len(schedule), device=self._device)

    @property
    def steps(self) -> int:
        """How many denoising steps T a sample takes."""
        return len(self.schedule)

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Classifier-free guidance, equation 3 (appendix E.1) of Black et al. 2023.

        Args:
            latents: [N, C, h, w].
            timesteps: [N] int64, of the schedule the model was trained with.
            conditioning: of N samples.

        Returns:
            [N, C, h, w] w·ε(x_t, t, c) + (1 - w)·ε(x_t, t), or the same of another prediction type.
        """
        return self._passed(self._unet, latents, timesteps, conditioning)

    def _passed(
        self,
        unet: UNet2DConditionModel,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """The prediction, by threads that share the rows and halves that share their prefix."""

        def run(part: slice) -> Tensor:
            return self._guided(unet, latents[part], timesteps[part], conditioning[part])

        with self._shared_prefix(unet):
            return self._threads.output(run, len(latents), list(unet.parameters()))

    def _guided(
        self,
        unet: UNet2DConditionModel,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        scale = self._guidance_scale
        if scale != 1.0:
            latents, timesteps = torch.cat([latents, latents]), torch.cat([timesteps, timesteps])
            empty = self._unconditional.expand(len(conditioning))
            conditioning = Conditioning.cat([empty, conditioning])
        added: dict[str, Any] | None = None
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        with autocast(self._precision, self._device):
            output: Tensor = unet(
                latents,
                timesteps,
                conditioning.embeddings,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        output = output.to(latents.dtype)
        if scale == 1.0:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def step(
        self, latents: Tensor, index: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """The Gaussian of one denoising step, each row at a step of its own.

        Args:
            latents: [N, C, h, w] x_t.
            index: [N] int64, which step: 0 is the first (noisiest), T - 1 the last.
            conditioning: of N samples.

        Returns:
            mean [N, C, h, w] and sigma [N, 1, 1, 1].
        """
        output = self.predict(latents, self.schedule.timesteps[index], conditioning)
        return self._mean(latents, output, index), _per_row(self.schedule.sigma, index)

    def _mean(self, latents: Tensor, output: Tensor, index: Tensor) -> Tensor:
        mean = _per_row(self.schedule.from_latents, index) * latents
        return mean + _per_row(self.schedule.from_output, index) * output

    @torch.no_grad()
    def reference_step(self, latents: Tensor, index: Tensor, conditioning: Conditioning) -> Tensor:
        """Mean [N, C, h, w] of the step under the model that training started from.

        Without gradient; arguments as of `step`, and its sigma is that of `step`.

        Raises:
            RuntimeError: the whole UNet is trained, and no copy of its start was kept.
        """
        if self._reference is None and not has_lora(self._unet):
            raise RuntimeError("no reference was kept; make the Finetuner with keep_reference=True")
        unet = self._reference or self._unet
        adapters = without_lora(unet) if self._reference is None else nullcontext()
        with adapters:
            output = self._passed(unet, latents, self.schedule.timesteps[index], conditioning)
        return self._mean(latents, output, index)

    def log_prob(
        self, latents: Tensor, next_latents: Tensor, index: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """[N] log p_θ(next_latents | latents), see `gaussian_log_prob`; arguments as of `step`."""
        mean, sigma = self.step(latents, index, conditioning)
        return gaussian_log_prob(mean, sigma, next_latents)

    def sample(self, conditioning: Conditioning, noise: Tensor) -> Trajectory:
        """Denoise N samples; without gradient, and a function of its arguments alone.

        Args:
            conditioning: of N samples.
            noise: [N, T + 1, C, h, w] standard normal: x_T, then the noise of each step.
        """
        count = len(noise)
        # Made outside of inference mode, so that training may use them.
        path = Trajectory(torch.empty_like(noise), noise.new_empty(count, self.steps))

        def run(part: slice) -> None:
            self._sample(conditioning[part], noise[part], path.latents[part], path.log_probs[part])

        with fused_lora(self._unet), self._shared_prefix(self._unet):
            self._threads.map(run, count)
        return path

    @torch.inference_mode()
    def _sample(
        self, conditioning: Conditioning, noise: Tensor, latents: Tensor, log_probs: Tensor
    ) -> None:
        latents[:, 0] = noise[:, 0]
        # Around all steps, autocast rounds each weight once, not at every step.
        with autocast(self._precision, self._device):
            for i in range(self.steps):
                index = self._all_steps[i].expand(len(noise))
                timesteps = self.schedule.timesteps[index]
                output = self._guided(self._unet, latents[:, i], timesteps, conditioning)
                mean = self._mean(latents[:, i], output, index)
                sigma = _per_row(self.schedule.sigma, index)
                latents[:, i + 1] = mean + sigma * noise[:, i + 1]
                log_probs[:, i] = gaussian_log_prob(mean, sigma, latents[:, i + 1])

    def _shared_prefix(self, unet: UNet2DConditionModel) -> AbstractContextManager[None]:
        """Within, passes compute once what both halves of guidance have in common."""
        return nullcontext() if self._guidance_scale == 1.0 else shared_prefix(unet)


def _per_row(table: Tensor, index: Tensor) -> Tensor:
    return table[index].view(-1, 1, 1, 1)
