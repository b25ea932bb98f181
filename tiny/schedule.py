"""The learning-rate schedule of both training stages."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A linear rise over the first 5 % of the steps, then half a cosine down to zero.

    The cosine is that of Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5.
    """
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)
