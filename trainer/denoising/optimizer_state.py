"""Parameters, AdamW moments, moving average and loss scale as flat named tensors, and back."""

from collections.abc import Mapping

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


def training_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Copies on the CPU, named `model.<parameter>` and `optimizer.<moment>.<parameter>`."""
    tensors = {f"model.{name}": parameter for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = value
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def restore_training_tensors(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put back what `training_tensors` returned.

    Raises:
        ValueError: the tensors are of another model, or of other trainable parameters.
    """
    saved = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    if different := sorted(saved ^ parameters.keys()):
        raise ValueError(
            f"this checkpoint is not of this model: {len(different)} parameters are in one and not "
            f"in the other, e.g. {different[0]!r}; resume with the model and lora section it had"
        )
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            moment, _, name = rest.partition(".")
            moments[name][moment] = value.clone()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    optimizer.load_state_dict(
        {
            "state": {i: kept for i, kept in enumerate(moments.values()) if kept},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def average_tensors(
    parameters: Mapping[str, nn.Parameter], average: EMAModel | None
) -> dict[str, Tensor]:
    """Copies on the CPU, named `average.<parameter>`, and the count of steps, `average_steps`."""
    if average is None:
        return {}
    named = zip(parameters, average.shadow_params, strict=True)
    tensors = {f"average.{name}": value.to("cpu", copy=True) for name, value in named}
    return {**tensors, "average_steps": torch.tensor(average.optimization_step)}


def restore_average(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    average: EMAModel | None,
) -> None:
    """Put back what `average_tensors` returned.

    Raises:
        ValueError: only one of the two, checkpoint and run, has an average.
    """
    if ("average_steps" in tensors) != (average is not None):
        raise ValueError(
            "only one of this checkpoint and this run has a moving average; resume with the "
            "ema_decay it had"
        )
    if average is None:
        return
    for name, value in zip(parameters, average.shadow_params, strict=True):
        value.copy_(tensors[f"average.{name}"])
    average.optimization_step = int(tensors["average_steps"])


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """The loss scale and how many steps it has held; nothing where the loss is not scaled."""
    state = scaler.state_dict()
    if not state:
        return {}
    return {
        "loss_scale": torch.tensor(state["scale"], dtype=torch.float64),
        "loss_scale_steps": torch.tensor(state["_growth_tracker"]),
    }


def restore_scaler(tensors: Mapping[str, Tensor], scaler: torch.amp.GradScaler) -> None:
    """Put back what `scaler_tensors` returned.

    Raises:
        ValueError: only one of the two, checkpoint and run, scales its loss.
    """
    if ("loss_scale" in tensors) != scaler.is_enabled():
        raise ValueError(
            "only one of this checkpoint and this run scales its loss, as fp16 does; resume with "
            "the precision it had"
        )
    if not scaler.is_enabled():
        return
    scaler.load_state_dict(
        {
            **scaler.state_dict(),
            "scale": float(tensors["loss_scale"]),
            "_growth_tracker": int(tensors["loss_scale_steps"]),
        }
    )
