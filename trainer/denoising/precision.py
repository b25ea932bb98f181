"""In which arithmetic the networks run."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def freeze_in(module: nn.Module, precision: Precision) -> None:
    """Make its weights constants, kept in `precision`; what is trained is fp32 in any."""
    module.requires_grad_(False)
    # Not module.to: that of diffusers warns of layers that must stay at fp32, of which a UNet has
    # none.
    nn.Module.to(module, _DTYPES[precision])


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Run matrix products and convolutions in `precision`, whatever the weights are kept in."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])
