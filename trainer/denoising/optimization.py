"""The parameters that are trained: their gradients, their steps, their moving average."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from salon.errors import SalonError
from trainer.denoising.config import DenoisingConfig
from trainer.denoising.optimizer_state import (
    average_tensors,
    restore_average,
    restore_scaler,
    restore_training_tensors,
    scaler_tensors,
    training_tensors,
)
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks


class Optimization:
    """AdamW on fp32 parameters, whose gradients come from all ranks.

    Args:
        parameters: name -> fp32 parameter.
        config: hyperparameters.
        device: of the parameters.
        ranks: the processes that train together.
        interrupt: ends an update midway, by an exception: between two passes if this process trains
            alone, else before a step that all take.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        config: DenoisingConfig,
        device: torch.device,
        ranks: Ranks,
        interrupt: Interrupt,
    ) -> None:
        self._parameters = parameters
        self._config = config
        self._ranks = ranks
        self._interrupt = interrupt
        self._optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        self._average: EMAModel | None = None
        if config.ema_decay is not None:
            self._average = EMAModel(parameters.values(), decay=config.ema_decay, foreach=True)
        # Small gradients vanish in fp16 unless the loss is scaled up. Disabled, it changes nothing.
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        # It makes its scale when first asked, which a rank without samples never does.
        self._scaler.scale(torch.zeros((), device=device))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a part of the update's, to those of the parameters.

        Raises:
            Interrupted: asked to stop; the update is not whole.
        """
        if self._ranks.count == 1:  # else the others would wait for this one's gradient
            self._interrupt.check()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

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
        parameters = list(self._parameters.values())
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
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are their moving average, if there is one."""
        if self._average is None:
            yield
            return
        parameters = list(self._parameters.values())
        self._average.store(parameters)
        self._average.copy_to(parameters)
        try:
            yield
        finally:
            self._average.restore(parameters)

    def state(self) -> dict[str, Tensor]:
        """All that an exact resume needs, named, copied to the CPU."""
        return {
            **training_tensors(self._parameters, self._optimizer),
            **average_tensors(self._parameters, self._average),
            **scaler_tensors(self._scaler),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the state is of another model, of other trainable parameters, or of a run
                with another `ema_decay` or precision.
        """
        restore_training_tensors(tensors, self._parameters, self._optimizer)
        restore_average(tensors, self._parameters, self._average)
        restore_scaler(tensors, self._scaler)
