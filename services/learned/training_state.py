"""A network, its Adam and its random generator as one flat set of named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from salon.checkpoint_keys import damage
from salon.errors import InvalidRequest

_NETWORK = "network."
_OPTIMIZER = "optimizer."
_GENERATOR = "generator"
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


def training_tensors(
    network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Tensor]:
    """Copies on the CPU: `network.<name>`, `optimizer.<parameter>.<moment>` and `generator`."""
    tensors = {_NETWORK + name: value for name, value in network.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": value for name, value in moments.items()}
    tensors[_GENERATOR] = generator.get_state()
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def restore_training_tensors(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Put back what `training_tensors` returned.

    Raises:
        InvalidRequest: the tensors are of another network, incomplete, NaN or infinite.
    """
    try:
        own = below(tensors, _NETWORK)
        for name, weight in network.state_dict().items():
            if own[name].dtype != weight.dtype:
                raise TypeError(f"{name} is {own[name].dtype}, and the network's {weight.dtype}")
        if reason := damage(own.items(), {"the export": own}):
            raise ValueError(f"it {reason}")
        network.load_state_dict(own)
        moments = _moments(tensors, [parameter.shape for parameter in network.parameters()])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        generator.set_state(tensors[_GENERATOR])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidRequest(f"tensors of another network, or incomplete: {error}") from None


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _moments(
    tensors: Mapping[str, Tensor], shapes: list[torch.Size]
) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in below(tensors, _OPTIMIZER).items():
        index, _, name = key.partition(".")
        # A clone: the optimiser writes into what it is given.
        moments.setdefault(int(index), {})[name] = value.clone()
    # Before the first step Adam has none at all.
    if moments and moments.keys() != set(range(len(shapes))):
        raise ValueError(f"{len(moments)} parameters have moments, the network has {len(shapes)}")
    for parameter, kept in moments.items():
        found = {name: value.shape for name, value in kept.items()}
        shape = shapes[parameter]
        if found != {name: torch.Size() if name == "step" else shape for name in _MOMENTS}:
            raise ValueError(f"the moments of parameter {parameter} are {found}")
    return moments
