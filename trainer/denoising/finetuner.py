"""A UNet in training: its policy, its optimiser, its pictures and its files."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from salon.errors import InvalidRequest, one_line
from trainer.algorithm import Preview
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.config import DenoisingConfig
from trainer.denoising.gaussian import gaussian_kl
from trainer.denoising.optimization import Optimization
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.policy import DenoisingPolicy
from trainer.denoising.precision import freeze_in
from trainer.denoising.row_threads import RowThreads
from trainer.denoising.schedule import Schedule
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks
from trainer.runtime.seeds import generator

PREVIEW_SIZE = 8


class Finetuner:
    """What algorithms own in common; each adds where its samples and its loss come from.

    Args:
        diffusion: the generator; gets adapters and precision as the config says.
        config: hyperparameters.
        prompts: those to train on; a few of them are the preview's.
        seed: of the adapters' first weights.
        ranks: the processes that train together; by default this one alone.
        keep_reference: have `policy.reference_step`, which costs a copy of the UNet unless training
            changes adapters alone.
        interrupt: ends an update midway, by an exception: between two passes if this process trains
            alone, else before a step that all take.

    Raises:
        InvalidRequest: the model's scheduler has no Gaussian steps of that kind, or too few.

    Attributes:
        diffusion: as given.
        parameters: name -> fp32 parameter, of all that is trained.
        policy: samples, and scores what was sampled.
        optimization: of the parameters.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        config: DenoisingConfig,
        prompts: Sequence[str],
        seed: int,
        ranks: Ranks | None = None,
        *,
        keep_reference: bool = False,
        interrupt: Interrupt | None = None,
    ) -> None:
        _prepare(diffusion, config, seed)
        self.diffusion = diffusion
        self.parameters: dict[str, nn.Parameter] = diffusion.trainable()
        threads = RowThreads(config.row_threads)
        try:
            schedule = Schedule.of(
                diffusion.use_scheduler(config.scheduler),
                steps=config.sampling_steps,
                eta=config.eta,
                device=diffusion.device,
            )
        except Exception as error:  # whatever a value in the model's configuration leads to
            raise InvalidRequest(
                f"algorithm.scheduler {config.scheduler}: {one_line(error)}"
            ) from error
        self.policy = DenoisingPolicy(
            diffusion.unet,
            schedule,
            guidance_scale=config.guidance_scale,
            unconditional=diffusion.unconditional(),
            precision=config.precision,
            reference=_frozen_copy(diffusion) if keep_reference and config.lora is None else None,
            threads=threads,
        )
        self._config = config
        self._prompts = list(prompts)
        self.optimization = Optimization(
            self.parameters,
            config,
            diffusion.device,
            ranks or Ranks.alone(),
            interrupt or Interrupt(),
        )

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images [N, H, W, 3] by the sampler of training, with noise training never draws.

        By the average of the weights, if there is one. An image depends on its own prompt and seed,
        not on its neighbours (but for rounding).
        """
        images = []
        with self.optimization.averaged():
            for conditioning, noise in self._starts(prompts, seeds):
                path = self.policy.sample(conditioning, noise)
                images.append(self.diffusion.decode(path.latents[:, -1]))
        return np.concatenate(images)

    @torch.no_grad()
    def kl(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float64]:
        """[N] divergence from the model training started from, along the paths of `generate`.

        The mean of `gaussian_kl` over the T steps. The divergence of whole paths is the sum over
        their steps and dimensions, expected over paths (DPOK, Fan et al. 2023, arXiv 2305.16381,
        section 4.2): T · C · h · w times this.

        Raises:
            RuntimeError: the whole UNet is trained, and `keep_reference` was not asked for.
        """
        divergences = []
        with self.optimization.averaged():
            for conditioning, noise in self._starts(prompts, seeds):
                latents = self.policy.sample(conditioning, noise).latents
                total = noise.new_zeros(len(noise))
                for i in range(self.policy.steps):
                    index = torch.full((len(noise),), i, device=noise.device)
                    sigma = self.policy.schedule.sigma[i]
                    mean = latents[:, i + 1] - sigma * noise[:, i + 1]  # that it was drawn from
                    reference = self.policy.reference_step(latents[:, i], index, conditioning)
                    total += gaussian_kl(mean, reference, sigma)
                divergences.append((total / self.policy.steps).cpu().double().numpy())
        return np.concatenate(divergences)

    def _starts(
        self, prompts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[tuple[Conditioning, Tensor]]:
        """What `policy.sample` makes paths of, in batches of a size that fits."""
        size = self._config.sample_batch_size
        shape = (self.policy.steps + 1, *self.diffusion.latent_shape)
        for start in range(0, len(prompts), size):
            batch = slice(start, start + size)
            noise = torch.stack(
                [torch.randn(shape, generator=generator("evaluation", s)) for s in seeds[batch]]
            )
            yield self.diffusion.encode(prompts[batch]), noise.to(self.diffusion.device)

    def preview(self) -> Preview:
        """Images of a few training prompts, evenly spread over their list."""
        count = min(PREVIEW_SIZE, len(self._prompts))
        prompts = [self._prompts[i * len(self._prompts) // count] for i in range(count)]
        seeds = range(count)
        return Preview(self.generate(prompts, seeds), tuple(prompts), tuple(seeds))

    def save(self, folder: Path) -> None:
        """Write the trained model, averaged if it is, into `folder`; see `Diffusion.save`."""
        with self.optimization.averaged():
            self.diffusion.save(folder)


def _prepare(diffusion: Diffusion, config: DenoisingConfig, seed: int) -> None:
    """Adapters, precision and the ways to trade time for memory."""
    diffusion.precision = config.precision
    if diffusion.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        # On by default, unlike that of matrix products.
        torch.backends.cudnn.allow_tf32 = config.tf32
    if config.lora is not None:
        diffusion.add_lora(
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            target_modules=config.lora.target_modules,
            seed=seed,
        )
    if config.gradient_checkpointing:
        diffusion.unet.enable_gradient_checkpointing()
    if config.row_threads > 1 and diffusion.device.type != "cpu":
        raise InvalidRequest(
            f"row_threads: {config.row_threads} is for a CPU, and the model is on "
            f"{diffusion.device}: leave it out"
        )
    if config.compile:
        # Of a small UNet it returned exact outputs and gradients that were off by half.
        if diffusion.device.type == "cpu":
            raise InvalidRequest(
                "compile: true is for a GPU: on a CPU the gradients of torch's compiler are wrong "
                "(seen with torch 2.13); leave it out"
            )
        diffusion.unet.compile()


def _frozen_copy(diffusion: Diffusion) -> UNet2DConditionModel:
    unet = copy.deepcopy(diffusion.unet)
    freeze_in(unet, diffusion.precision)
    return unet
