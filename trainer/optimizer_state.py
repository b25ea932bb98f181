"""Parameters and their AdamW moments as one flat set of named tensors, and back."""

from collections.abc import Mapping

import torch
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
