"""A UNet in training: its policy, its optimiser, its pictures and its files."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from torch import Tensor, nn

from salon.errors import InvalidRequest, SalonError
from trainer.algorithm import Preview
from trainer.conditioning import Conditioning
from trainer.denoising.config import DenoisingConfig
from trainer.denoising.gaussian import gaussian_kl
from trainer.denoising.policy import DenoisingPolicy
from trainer.denoising.row_threads import RowThreads
from trainer.denoising.schedule import Schedule
from trainer.diffusion import Diffusion
from trainer.interrupt import Interrupt
from trainer.optimizer_state import (
    average_tensors,
    restore_average,
    restore_scaler,
    restore_training_tensors,
    scaler_tensors,
    training_tensors,
)
from trainer.precision import freeze_in
from trainer.ranks import Ranks
from trainer.seeds import generator

PREVIEW_SIZE = 8

T = TypeVar("T")


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

    Attributes:
        diffusion: as given.
        parameters: name -> fp32 parameter, of all that is trained.
        policy: samples, and scores what was sampled.
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
        self._threads = RowThreads(config.row_threads)
        self.policy = DenoisingPolicy(
            diffusion.unet,
            Schedule.of(
                diffusion.scheduler(config.scheduler),
                steps=config.sampling_steps,
                eta=config.eta,
                device=diffusion.device,
            ),
            guidance_scale=config.guidance_scale,
            unconditional=diffusion.unconditional(),
            precision=config.precision,
            reference=_frozen_copy(diffusion) if keep_reference and config.lora is None else None,
            threads=self._threads,
        )
        self._config = config
        self._prompts = list(prompts)
        self._ranks = ranks or Ranks.alone()
        self._interrupt = interrupt or Interrupt()
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        self._average: EMAModel | None = None
        if config.ema_decay is not None:
            self._average = EMAModel(self.parameters.values(), decay=config.ema_decay, foreach=True)
        # Small gradients vanish in fp16 unless the loss is scaled up. Disabled, it changes nothing.
        self._scaler = torch.amp.GradScaler(
            diffusion.device.type, enabled=config.precision == "fp16"
        )

    def backward(self, passed: Callable[[slice], tuple[Tensor | None, T]], rows: int) -> list[T]:
        """Add the gradient of what a pass adds to the loss to those of the parameters.

        Args:
            passed: of a part of the pass's rows: the scalar that it adds to the loss, or None if
                that has no gradient, and anything else.
            rows: of the pass.

        Returns:
            the rest of what `passed` returned, of each part.

        Raises:
            Interrupted: asked to stop; the update is not whole.
        """
        if self._ranks.count == 1:  # else the others would wait for this one's gradient
            self._interrupt.check()
        parameters = list(self.parameters.values())

        def differentiate(part: slice) -> tuple[Sequence[Tensor | None], T]:
            loss, rest = passed(part)
            if loss is None:
                return (), rest
            loss = self._scaler.scale(loss)
            if part == slice(0, rows):
                loss.backward()  # type: ignore[no-untyped-call]
                return (), rest
            # Not into the parameters' own: in which order threads add to those is up to chance.
            return torch.autograd.grad(loss, parameters, allow_unused=True), rest

        with self.policy.shared_prefix():
            parts = self._threads.map(differentiate, rows)
        for gradients, _ in parts:
            for parameter, gradient in zip(parameters, gradients, strict=False):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(gradient)
        return [rest for _, rest in parts]

    def apply_gradient(self) -> Tensor:
        """Sum the gradients of all ranks, scale them down to `max_grad_norm`, step, clear them.

        All ranks take the same step. In fp16 a gradient that overflowed is not applied; the scale
        of the loss is halved instead.

        Returns:
            [] the norm before it was scaled down, on the device; not finite if it overflowed.

        Raises:
            Interrupted: this rank or another one was asked to stop; none takes the step.
            SalonError: the gradient is not finite, and the scale of the loss is not why.
        """
        self._ranks.agree(self._interrupt.pending())
        parameters = list(self.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:  # no samples are this rank's, or none teaches anything
                parameter.grad = torch.zeros_like(parameter)
        if self._ranks.count > 1:
            # Scaled as they are: an overflow on one rank is then one on all.
            self._ranks.sum_([p.grad for p in parameters if p.grad is not None])
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        if self._scaler.get_scale() <= 1 and not torch.isfinite(norm):  # 1 where it is disabled
            raise SalonError(
                f"the norm of a gradient is {norm.item()}: training diverged; lower learning_rate "
                f"({self._config.learning_rate}) or, if precision {self._config.precision} "
                "overflows, take a wider one"
            )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.step(parameters)
        return norm

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within, the parameters are their moving average, if there is one."""
        if self._average is None:
            yield
            return
        parameters = list(self.parameters.values())
        self._average.store(parameters)
        self._average.copy_to(parameters)
        try:
            yield
        finally:
            self._average.restore(parameters)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images [N, H, W, 3] by the sampler of training, with noise training never draws.

        By the average of the weights, if there is one. An image depends on its own prompt and seed,
        not on its neighbours (but for rounding).
        """
        images = []
        with self._averaged():
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
        with self._averaged():
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
        with self._averaged():
            self.diffusion.save(folder)

    def state(self) -> dict[str, Tensor]:
        """All that an exact resume needs, named, copied to the CPU."""
        return {
            **training_tensors(self.parameters, self._optimizer),
            **average_tensors(self.parameters, self._average),
            **scaler_tensors(self._scaler),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the state is of another model, of other trainable parameters, or of a run
                with another `ema_decay` or precision.
        """
        restore_training_tensors(tensors, self.parameters, self._optimizer)
        restore_average(tensors, self.parameters, self._average)
        restore_scaler(tensors, self._scaler)


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
