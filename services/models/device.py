"""Where a network runs and in which floating point."""

import re

import torch

from salon.errors import InvalidRequest
from salon.serving import ModelConfig

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve(config: ModelConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that `config` asks for.

    `auto` is the first GPU that torch sees, else the CPU; and float16 on a GPU, float32 on a CPU.

    Raises:
        InvalidRequest: a device that is none, or a GPU that torch does not see.
    """
    device = resolve_device(config.device)
    if config.dtype == "auto":
        return device, torch.float16 if device.type == "cuda" else torch.float32
    return device, _DTYPES[config.dtype]


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU that torch sees, else the CPU.

    Raises:
        InvalidRequest: a name that is no device, or a GPU that torch does not see.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if gpus else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    found = re.fullmatch(r"cuda(?::(\d+))?", name)
    if found is None:
        raise InvalidRequest(f"device {name!r} is none of auto, cpu, cuda and cuda:N")
    index = int(found[1] or 0)
    if index >= gpus:
        seen = f"sees {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "sees no GPU"
        raise InvalidRequest(
            f"device {name!r}: torch {torch.__version__} {seen}; choose cpu or auto, or install "
            "the CUDA build of torch and let this process see the GPU (CUDA_VISIBLE_DEVICES)"
        )
    return torch.device("cuda", index)
